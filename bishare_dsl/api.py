"""The Python interface: plan a spec, compile it into a model, load an adapter. What is found is warned of."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, TypeVar, cast

from bishare_dsl.compiler import Params, make_plan, read_fitting
from bishare_dsl.diagnostics import BishareWarning, render
from bishare_dsl.models import Architecture
from bishare_dsl.plan import Plan
from bishare_dsl.spec import Spec

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import nn

    Model = TypeVar("Model", bound=nn.Module)

__all__ = ["BishareWarning", "Params", "compile_spec", "load_adapter", "plan_spec"]


def plan_spec(
    spec: Spec | str | os.PathLike[str],
    model: nn.Module | Architecture | str,
    params: Params | None = None,
) -> Plan:
    """Resolve a spec against a model: every tensor, every pool, every count. Nothing is drawn.

    Args:
        spec: a spec, its text (of several lines), the path of a ``.share`` file, or the name of a spec that
            ships with bishare.
        model: a model, its shapes, or what names it: a preset, a checkpoint folder, a ``config.json``, a
            ``.gguf`` file or a Hub id.
        params: values to use instead of those in the spec.

    Raises:
        BishareError: the spec is wrong or does not fit, or the model cannot be found; every problem,
            each at its place in the file.
        FileNotFoundError: there is no such spec.
    """
    found = make_plan(spec, model, params)
    _warn(*(render(problem, found.where) for problem in found.problems))
    return found.plan


def compile_spec(
    spec: Spec | str | os.PathLike[str] | LoraConfig,
    model: Model,
    params: Params | None = None,
    seed: int = 0,
) -> Model:
    """Adapt a model: draw the tensors of a spec and rewrite the forwards that use them.

    The base's parameters stop training, and the adapter's train. Before training the model's logits are
    those of its base, bit for bit. ``model.bishare`` saves, merges, exports and disables the adapter.

    Args:
        spec: as in `plan_spec`; or a `LoraConfig` of PEFT, of which a spec is made.
        model: any causal language model of transformers; with weights or on the meta device.
        params: as in `plan_spec`.
        seed: of the tensors. Each tensor is drawn separately, in float32: the same seed gives the same
            adapter on any device, whatever else is in the spec.

    Returns:
        The same object, adapted.

    Raises:
        BishareError: as in `plan_spec`; or the model has an adapter (BS401). Nothing was changed.
        FileNotFoundError: there is no such spec.
    """
    from bishare_dsl.peft.lora import spec_of_lora
    from bishare_dsl.peft.method import install

    if type(spec).__name__ == "LoraConfig":
        spec = spec_of_lora(cast("LoraConfig", spec), model)
    found = make_plan(cast("Spec", spec), model, params)
    _warn(*(render(problem, found.where) for problem in found.problems))
    _warn(*install(model, found, seed))
    return model


def load_adapter(folder: str | os.PathLike[str], model: Model) -> Model:
    """Adapt a model with a saved adapter. Everything is checked before anything is changed.

    Args:
        folder: that `save_pretrained` or ``bishare compile`` has written; ``FOLDER#NAME``, an adapter of a
            library; a plain LoRA that PEFT has written; or the id of either on the Hub, ``owner/name`` or
            ``owner/name@revision``.
        model: the base that the adapter was made for, or one of the same shapes.

    Returns:
        The same object, adapted.

    Raises:
        BishareError: the folder is not an adapter, is damaged, or was made for another base (BS6xx), a
            transform of it is not installed or cannot be used (BS619, BS214), the Hub does not give it out
            (BS504, BS505), or the model has an adapter, as in `compile_spec`; nothing was changed.
    """
    from bishare_dsl.peft.method import install

    stored, problems = read_fitting(folder, model)
    _warn(*map(render, problems))
    _warn(*install(model, stored))
    return model


def _warn(*texts: str) -> None:
    for text in texts:
        warnings.warn(text, BishareWarning, stacklevel=3)
