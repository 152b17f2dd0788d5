"""The Python interface: plan a spec, compile it into a model, load an adapter."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar, cast

from bishare_dsl.diagnostics import (
    AdapterError,
    BishareError,
    BishareWarning,
    Problem,
    SourceMap,
    raise_errors,
    render,
)
from bishare_dsl.models import Architecture, architecture_of, inspect_model
from bishare_dsl.plan import Plan, build_plan
from bishare_dsl.resources import find_spec
from bishare_dsl.spec import Spec

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bishare_dsl.adapter.handle import AdapterHandle

    Model = TypeVar("Model", bound=nn.Module)

__all__ = ["BishareWarning", "Params", "compile_spec", "load_adapter", "plan_spec"]

DEFAULT = "default"
"""The name of an adapter that was given none, as in PEFT."""

Params = Mapping[str, int | float | str]
"""Other values for a spec's params."""


def plan_spec(
    spec: Spec | str | os.PathLike[str],
    model: nn.Module | Architecture | str,
    params: Params | None = None,
) -> Plan:
    """Resolve a spec against a model: every tensor, every pool, every count. Nothing is drawn.

    Args:
        spec: a spec, the path of a ``.share`` file, or the name of a spec that ships with bishare.
        model: a model, its shapes, or what names it: a preset, a checkpoint folder, a ``config.json``, a
            ``.gguf`` file or a Hub id.
        params: values to use instead of those in the spec.

    Raises:
        BishareError: the spec is wrong or does not fit, or the model cannot be found; every problem,
            each at its place in the file.
        FileNotFoundError: there is no such spec.
    """
    if isinstance(model, str):
        model = architecture_of(model)
    elif not isinstance(model, Architecture):
        model = inspect_model(model)
    return _plan(spec, model, params)[0]


def compile_spec(
    spec: Spec | str | os.PathLike[str],
    model: Model,
    params: Params | None = None,
    seed: int = 0,
    name: str | None = None,
) -> Model:
    """Adapt a model: draw the tensors of a spec and rewrite the forwards that use them.

    The base's parameters stop training, the adapter's train. Until they do, the model's logits are those
    of its base, bit for bit. ``model.bishare`` saves, merges, exports and disables the adapter.

    Args:
        spec: as in `plan_spec`.
        model: any causal language model of transformers; with weights or on the meta device.
        params: as in `plan_spec`.
        seed: of the tensors. Each is drawn for itself, in float32: the same seed gives the same adapter
            on any device, whatever else is in the spec.
        name: of the adapter; ``default`` for one alone. A model that has an adapter gets this one beside
            it under the name that is given here, not active: ``model.bishare.set_adapter(name)`` is.

    Returns:
        The same object, adapted.

    Raises:
        BishareError: as in `plan_spec`; or the model has an adapter and no name is given (BS401), the
            name is in use (BS641), or the model's adapter is merged, disabled or sharded (BS643, BS626,
            BS645). Nothing was changed.
        FileNotFoundError: there is no such spec.
    """
    from bishare_dsl.adapter.initial import draw
    from bishare_dsl.adapter.resident import devices

    plan, text = _plan(spec, inspect_model(model), params)
    where = devices(plan, model)
    if all(device.type == "meta" for device in where.values()):
        tensors = draw(plan, seed, "meta")
    else:
        tensors = {n: t.to(where[n]) for n, t in draw(plan, seed).items()}
    _adapt(model, plan, tensors, text, seed, name)
    return model


def load_adapter(folder: str | os.PathLike[str], model: Model, name: str | None = None) -> Model:
    """Adapt a model with a saved adapter. Everything is checked before anything is changed.

    Args:
        folder: that `save_pretrained` or ``bishare compile`` has written.
        model: the base that the adapter was made for, or one of the same shapes.
        name: as in `compile_spec`.

    Returns:
        The same object, adapted.

    Raises:
        BishareError: the folder is no adapter, is damaged, or was made for another base (BS6xx), a
            transform of it is not installed or cannot be used (BS619, BS214), or the model has an
            adapter, as in `compile_spec`; nothing was changed.
    """
    from bishare_dsl.adapter.files import base_problems, read_adapter
    from bishare_dsl.adapter.resident import devices

    stored = read_adapter(folder)
    problems = list(base_problems(stored.plan, inspect_model(model)))
    raise_errors(AdapterError, problems)
    _warn(problems)
    where = devices(stored.plan, model)
    tensors = {n: t.to(where[n]) for n, t in stored.tensors().items()}
    handle = _adapt(model, stored.plan, tensors, stored.spec_text, stored.config.seed, name)
    if stored.compact:
        handle.freeze_compact()
    return model


def _plan(
    spec: Spec | str | os.PathLike[str], architecture: Architecture, params: Params | None
) -> tuple[Plan, str]:
    """The plan, and a text that means the spec it was made from."""
    from bishare_dsl.language import own_text, read_file

    where: SourceMap | None = None
    if not isinstance(spec, Spec):
        spec, where = read_file(find_spec(os.fspath(spec)))
    try:
        if params:
            spec = spec.with_params(params)
        plan, problems = build_plan(spec, architecture)
    except BishareError as error:
        raise error.at(where) from None
    _warn(problems, where)
    return plan, own_text(spec, where, changed=bool(params))


def _adapt(
    model: nn.Module,
    plan: Plan,
    tensors: Mapping[str, torch.Tensor],
    spec_text: str,
    seed: int,
    name: str | None,
) -> AdapterHandle:
    """Put an adapter into a model, or beside the one that is in it: its handle."""
    from bishare_dsl.adapter.handle import AdapterHandle
    from bishare_dsl.rewrite.adapt import adapt, prepare

    beside = getattr(model, "bishare", None)
    if name is None or not isinstance(beside, AdapterHandle):
        beside = None
        notes = adapt(model, plan, tensors, root=AdapterHandle)
        handle = cast("AdapterHandle", model.bishare)
    else:
        beside.check_new(name)
        handle, notes = prepare(model, plan, tensors, AdapterHandle)
    handle.bind(model, plan, spec_text, seed, name or DEFAULT, beside)
    for note in notes:
        warnings.warn(note, BishareWarning, stacklevel=3)
    return handle


def _warn(problems: Iterable[Problem], where: SourceMap | None = None) -> None:
    for problem in problems:
        warnings.warn(render(problem, where), BishareWarning, stacklevel=4)
