"""The Python interface: plan a spec, compile it into a model, load an adapter. Findings become warnings."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, SupportsIndex, TypeVar

from bishare_dsl.compiler import Params, make_plan
from bishare_dsl.diagnostics import BishareWarning, render
from bishare_dsl.loading import read_fitting
from bishare_dsl.models import Architecture
from bishare_dsl.plan import Plan
from bishare_dsl.spec import Spec

if TYPE_CHECKING:
    from torch import nn

    Model = TypeVar("Model", bound=nn.Module)

__all__ = ["BishareWarning", "Params", "compile_spec", "load_adapter", "plan_spec"]


def plan_spec(
    spec: Spec | str | os.PathLike[str],
    model: nn.Module | Architecture | str,
    params: Params | None = None,
) -> Plan:
    """Resolve a spec against a model: every tensor, pool and count, without generating values.

    Args:
        spec: a spec, its text (of several lines), the path of a ``.share`` file, or the name of
            a shipped spec.
        model: a model, its shapes, or its name: a preset, a checkpoint folder, a ``config.json``, a ``.gguf``
            file or a Hub id.
        params: values for params of the spec.

    Raises:
        BishareError: the spec is wrong or does not fit, or the model cannot be found. The error lists every
            problem with its position.
        FileNotFoundError: the spec does not exist.
    """
    resolved = make_plan(spec, model, params)
    _warn(*(render(problem, resolved.where) for problem in resolved.problems))
    return resolved.plan


def compile_spec(
    spec: Spec | str | os.PathLike[str], model: Model, params: Params | None = None, seed: int = 0
) -> Model:
    """Adapt a model: initialise the tensors of a spec and rewrite the forwards that use them.

    The adapter's parameters become trainable, and the base's are frozen. Before training, the logits
    equal the base's bit for bit. ``model.bishare`` saves, merges, exports and disables the adapter.

    Args:
        spec: as in `plan_spec`. docs/peft.md says what the fields of a `LoraConfig` are in a spec.
        model: any model of transformers, with weights or on the meta device.
        params: as in `plan_spec`.
        seed: for the initial values. Each tensor is generated separately in float32, so the same
            seed gives the same tensor on any device and in any spec.

    Returns:
        The same object, adapted.

    Raises:
        BishareError: see `plan_spec`; or the model has an adapter already (BS401). The model is unchanged.
        FileNotFoundError: the spec does not exist.
    """
    from bishare_dsl.peft.method import check_arguments, install

    check_arguments("compile_spec(spec, model)", spec, model)
    if not isinstance(seed, SupportsIndex):
        raise TypeError(f"`seed` is an integer, and this is {seed!r}")
    resolved = make_plan(spec, model, params)
    _warn(*(render(problem, resolved.where) for problem in resolved.problems))
    _warn(*install(model, resolved, seed))
    return model


def load_adapter(folder: str | os.PathLike[str], model: Model) -> Model:
    """Adapt a model with a saved adapter. All checks run before the model is changed.

    Args:
        folder: the folder of an adapter, ``FOLDER#NAME`` for an adapter of a library, the folder of
            a LoRA of PEFT, or a Hub id of one of these (``owner/name`` or ``owner/name@revision``).
        model: the base of the adapter, or a model with the same shapes.

    Returns:
        The same object, adapted.

    Raises:
        BishareError: the folder is not an adapter, is damaged, or belongs to another base (BS6xx); a
            transform is missing or unusable (BS619, BS214); the Hub refuses it (BS504, BS505); or the model
            has an adapter already (BS401). The model is unchanged.
    """
    from bishare_dsl.peft.method import check_arguments, install

    check_arguments("load_adapter(folder, model)", folder, model)
    stored, problems = read_fitting(folder, model)
    _warn(*map(render, problems))
    _warn(*install(model, stored))
    return model


def _warn(*texts: str) -> None:
    for text in texts:
        warnings.warn(text, BishareWarning, stacklevel=3)
