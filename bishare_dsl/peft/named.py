"""PEFT's functions for LoRA that find tensors by name, adapted to bishare.

Each has the name and the arguments of PEFT's function, and calls it for any other model.
`bishare_dsl.peft` replaces PEFT's functions, which would silently use wrong learning rates or freeze
nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from peft import helpers, optimizers
from peft.optimizers import lorafa, loraplus
from peft.tuners.lora import arrow
from torch import nn

from bishare_dsl.adapter.handle import Handle
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.transforms import PLAIN

_RIDGE = 1e-8
"""Ridge added by PEFT's LoRA-FA to the diagonal of ``A A^T`` before inversion."""


def handle_in(model: nn.Module) -> Handle | None:
    """Return the handle of a model, or of the model wrapped in a `PeftModel`."""
    return next((module for module in model.modules() if isinstance(module, Handle)), None)


def create_loraplus_optimizer(
    model: nn.Module,
    optimizer_cls: type[torch.optim.Optimizer],
    *,
    lr: float,
    loraplus_lr_ratio: float,
    loraplus_weight_decay: float = 0.0,
    loraplus_lr_embedding: float = 1e-6,
    **settings: Any,
) -> torch.optim.Optimizer:
    """Make an optimizer that learns B faster than A (LoRA+, https://arxiv.org/abs/2402.12354).

    For bishare, the fast tensors are B, tensors that start at 0, and vectors.

    Args:
        model: a `PeftModel`, or a model that `compile_spec` has adapted.
        optimizer_cls: such as `torch.optim.AdamW`.
        lr: the learning rate of all other tensors.
        loraplus_lr_ratio: the fast tensors' learning rate relative to ``lr``.
        loraplus_weight_decay: for all tensors of the adapters.
        loraplus_lr_embedding: the learning rate of tensors used only at embeddings.
        **settings: for the optimizer.
    """
    handle = handle_in(model)
    assert handle is not None
    fast, looked_up = set[int](), set[int]()
    for adapter in handle.adapters.values():
        tensors, plan = adapter.parts.tensors(), adapter.plan
        sites: dict[str, list[str]] = {}
        for term in plan.terms:
            for role, name in term.tensors.items():
                sites.setdefault(name, []).append(term.site)
                tensor = tensors[name]
                if role == "B" or plan.tensor[name].init == "zeros" or tensor.ndim == 1:
                    fast.add(id(tensor))
        for name, paths in sites.items():
            modules = map(handle.model.get_submodule, paths)
            if all(isinstance(module, nn.Embedding) for module in modules):
                looked_up.add(id(tensors[name]))
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in (p for p in model.parameters() if p.requires_grad):
        rate = lr * loraplus_lr_ratio if id(parameter) in fast else lr
        rate = loraplus_lr_embedding if id(parameter) in looked_up else rate
        groups.setdefault(rate, []).append(parameter)
    decay = {"weight_decay": loraplus_weight_decay}
    return optimizer_cls(
        [{"params": p, "lr": rate, **decay} for rate, p in groups.items()], **settings
    )


def create_lorafa_optimizer(
    model: nn.Module,
    r: int | None = None,
    lora_alpha: int | None = None,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    use_rslora: bool | None = None,
) -> torch.optim.Optimizer:
    """Freeze A, and create an AdamW for B that projects its gradient as LoRA-FA does.

    The gradient is ``(A A^T)^-1 g / s^2`` (https://arxiv.org/abs/2308.03303), for each B with a single A.

    Args:
        model: a `PeftModel`, or a model that `compile_spec` has adapted.
        r, lora_alpha, use_rslora: ignored; ranks and scales s come from the plan.
        lr: the learning rate.
        weight_decay: of AdamW.

    Raises:
        AdapterError: a running adapter has terms for which this is undefined (BS669).
    """
    handle = handle_in(model)
    assert handle is not None
    pairs: list[tuple[nn.Parameter, nn.Parameter, float]] = []
    for name in handle.active:
        tensors, plan = handle[name].parts.tensors(), handle[name].plan
        uses_of: dict[str, set[tuple[str, float]]] = {}
        for term in plan.terms:
            if term.transform != PLAIN or {*term.tensors} != {"A", "B"}:
                reason = f"share `{term.share}` has a transform or gains ({term.transform})"
                raise AdapterError(codes.NO_LORA_FA(name=name, reason=reason))
            uses_of.setdefault(term.tensors["B"], set()).add((term.tensors["A"], term.scale))
        for b, uses in uses_of.items():
            if len(uses) > 1:
                reason = f"`{b}` is used with {len(uses)} tensors A or scales"
                raise AdapterError(codes.NO_LORA_FA(name=name, reason=reason))
            [(name_of_a, scale)] = uses
            pairs.append((tensors[name_of_a], tensors[b], scale))
    for a, _, _ in pairs:
        a.requires_grad_(False)

    def project(*_: Any) -> None:
        with torch.no_grad():
            for a, b, scale in pairs:
                if b.grad is not None:
                    gram = a @ a.T + _RIDGE * torch.eye(len(a), device=a.device)
                    b.grad = (torch.linalg.pinv(gram) @ b.grad).to(b) / scale**2

    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay)
    optimizer.register_step_pre_hook(project)
    return optimizer


def check_loaded_lora_compatibility_arrow(model: nn.Module, adapter_names: list[str]) -> NoReturn:
    """Refuse adapters of bishare as Arrow's experts, whose pairs A and B Arrow stacks by PEFT's names.

    Raises:
        AdapterError: always (BS697).
    """
    raise AdapterError(codes.NO_ARROW(names="`, `".join(adapter_names)))


@contextmanager
def rescale_adapter_scale(model: nn.Module, multiplier: float) -> Iterator[None]:
    """Multiply the updates of the running adapters by a number inside a block.

    Raises:
        AdapterError: as `Handle.set_scale`.
        TypeError: ``multiplier`` is not a number.
    """
    handle = handle_in(model)
    assert handle is not None
    if not isinstance(multiplier, (float, int)):
        raise TypeError(f"Argument multiplier should be of type float, got {type(multiplier)}")
    before = {name: handle[name].scale for name in handle.active}
    handle.scale_layer(multiplier)
    try:
        yield
    finally:
        for name, scale in before.items():
            handle.set_scale(name, scale)


def _for_both(ours: Callable[..., Any], theirs: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls ours for models with bishare adapters, and PEFT's otherwise."""

    @functools.wraps(theirs)
    def call(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return (theirs if handle_in(model) is None else ours)(model, *args, **kwargs)

    return call


def replace_named() -> None:
    """Replace PEFT's functions; names imported from PEFT earlier still refer to PEFT's versions."""
    places: Mapping[Callable[..., Any], tuple[Any, ...]] = {
        create_loraplus_optimizer: (optimizers, loraplus),
        create_lorafa_optimizer: (optimizers, lorafa),
        rescale_adapter_scale: (helpers,),
        check_loaded_lora_compatibility_arrow: (arrow,),
    }
    for ours, modules in places.items():
        for module in modules:
            setattr(module, ours.__name__, _for_both(ours, getattr(module, ours.__name__)))
