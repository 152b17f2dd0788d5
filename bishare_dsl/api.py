"""The Python interface: plan a spec, compile it into a model, load an adapter."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

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

    Model = TypeVar("Model", bound=nn.Module)

__all__ = ["BishareWarning", "Params", "compile_spec", "load_adapter", "plan_spec"]

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

    Returns:
        The same object, adapted.

    Raises:
        BishareError: as in `plan_spec`, or the model is adapted already; nothing was changed.
        FileNotFoundError: there is no such spec.
    """
    from bishare_dsl.adapter.initial import draw

    plan, text = _plan(spec, inspect_model(model), params)
    devices = _devices(plan, model)
    if all(device.type == "meta" for device in devices.values()):
        tensors = draw(plan, seed, "meta")
    else:
        tensors = {name: t.to(devices[name]) for name, t in draw(plan, seed).items()}
    return _adapt(model, plan, tensors, text, seed)


def load_adapter(folder: str | os.PathLike[str], model: Model) -> Model:
    """Adapt a model with a saved adapter. Everything is checked before anything is changed.

    Args:
        folder: that `save_pretrained` or ``bishare compile`` has written.
        model: the base that the adapter was made for, or one of the same shapes.

    Returns:
        The same object, adapted.

    Raises:
        BishareError: the folder is no adapter, is damaged, or was made for another base (BS6xx), a
            transform of it is not installed or cannot be used (BS619, BS214), or the model is adapted
            already; nothing was changed.
    """
    from bishare_dsl.adapter.files import base_problems, read_adapter

    stored = read_adapter(folder)
    problems = list(base_problems(stored.plan, inspect_model(model)))
    raise_errors(AdapterError, problems)
    _warn(problems)
    devices = _devices(stored.plan, model)
    tensors = {name: t.to(devices[name]) for name, t in stored.tensors().items()}
    model = _adapt(model, stored.plan, tensors, stored.spec_text, stored.config.seed)
    if stored.compact:
        model.bishare.freeze_compact()  # type: ignore[operator, union-attr]
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
    model: Model, plan: Plan, tensors: Mapping[str, torch.Tensor], spec_text: str, seed: int
) -> Model:
    from bishare_dsl.adapter.handle import AdapterHandle
    from bishare_dsl.rewrite.adapt import adapt

    for note in adapt(model, plan, tensors, root=AdapterHandle):
        warnings.warn(note, BishareWarning, stacklevel=3)
    handle = model.bishare
    assert isinstance(handle, AdapterHandle)
    handle.bind(model, plan, spec_text, seed)
    return model


def _devices(plan: Plan, model: nn.Module) -> dict[str, torch.device]:
    """Where each tensor goes: to the first site that uses it.

    Of an offloaded layer's tensors only the base's are offloaded, so the adapter's stay on the CPU.
    """
    import torch

    from bishare_dsl.adapter.resident import is_offloaded

    devices: dict[str, torch.device] = {}
    for path, terms in plan.terms_of.items():
        site = model.get_submodule(path)
        held = next(
            (t for ts in (site._parameters, site._buffers) for t in ts.values() if t is not None),
            None,
        )
        device = torch.device("cpu") if held is None or is_offloaded(site) else held.device
        for term in terms:
            for name in term.tensors.values():
                devices.setdefault(name, device)
    return devices


def _warn(problems: Iterable[Problem], where: SourceMap | None = None) -> None:
    for problem in problems:
        warnings.warn(render(problem, where), BishareWarning, stacklevel=4)
