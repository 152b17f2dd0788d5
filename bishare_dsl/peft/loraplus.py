"""PEFT's LoRA+ for adapters of bishare, whose tensors it would not find by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bishare_dsl.peft.method import handle


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
    of_model = handle(model)
    fast, looked_up = set[int](), set[int]()
    for adapter in of_model.adapters.values():
        tensors, plan = adapter.parts.tensors(), adapter.plan
        sites: dict[str, list[str]] = {}
        for term in plan.terms:
            for role, name in term.tensors.items():
                sites.setdefault(name, []).append(term.site)
                tensor = tensors[name]
                if role == "B" or plan.tensor[name].init == "zeros" or tensor.ndim == 1:
                    fast.add(id(tensor))
        for name, paths in sites.items():
            modules = map(of_model.model.get_submodule, paths)
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
