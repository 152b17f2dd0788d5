"""The island after a gated product, ``down(act(gate) * up)``, which saves less for the backward.

Module by module, autograd saves four tensors ``(tokens, d_ff)``: both inputs of the product, the input of
the activation, and the product. ``gate`` and ``up`` are enough. Recomputing the others costs two passes
over memory, little compared with three large products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import activations

from bishare_dsl.rewrite import ops
from bishare_dsl.rewrite.island import (
    Uses,
    decode,
    frozen_parameters,
    fused_island,
    gradients_with_history,
    is_unwatched,
    island,
    rows_of,
)

# Deterministic functions of their input, which can be called again.
_PURE = (
    *(nn.SiLU, nn.GELU, nn.ReLU, activations.SiLUActivation, activations.GELUActivation),
    *(activations.GELUTanh, activations.NewGELUActivation),
)


def gated_island(
    act: nn.Module,
    gate: Tensor,
    up: Tensor,
    downs: Sequence[ops.Applied],
    linears: Sequence[nn.Module],
    uses: Sequence[Uses],
    ups: Sequence[Sequence[ops.Applied]],
) -> tuple[Tensor, ...]:
    """Compute ``island(h, h, downs, linears, uses, ups)`` for ``h = act(gate) * up``, all ``(..., d_ff)``."""
    rows = rows_of(downs)
    if ops.is_decode_step(gate, rows):
        h = act(gate) * up
        return decode(h, h, downs, linears, uses, ups, rows)
    layers = None
    if _is_pure(act) and _alike(gate, up):
        layers = frozen_parameters(gate, rows, linears)
    if layers is None:
        h = act(gate) * up
        return island(h, h, downs, linears, uses, ups)
    product = _Product.apply if torch.is_grad_enabled() else _product
    h = product(act, gate, up)
    return fused_island(h, None, downs, layers, uses, ups, (act, gate, up))


def _is_pure(act: nn.Module) -> bool:
    """Tell whether an activation can be called again with the same result, and without hooks."""
    return type(act) in _PURE and is_unwatched(act) and not getattr(act, "inplace", False)


def _alike(gate: Tensor, up: Tensor) -> bool:
    return type(up) is Tensor and up.shape == gate.shape and up.dtype is gate.dtype


def _product(act: nn.Module, gate: Tensor, up: Tensor) -> Tensor:
    h: Tensor = act(gate).mul_(up)
    return h


class _Product(torch.autograd.Function):
    """Computes ``act(gate) * up``, saving only its two inputs."""

    @staticmethod
    def forward(ctx: Any, act: nn.Module, gate: Tensor, up: Tensor) -> Tensor:
        ctx.act = act
        ctx.save_for_backward(gate, up)
        return _product(act, gate, up)

    @staticmethod
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, *gradients_with_history(
                lambda g, u: [ctx.act(g) * u], (gate, up), ctx, [dh]
            )
        with torch.enable_grad():
            pre = gate.detach().requires_grad_()
            s = ctx.act(pre)
        (dgate,) = torch.autograd.grad(s, pre, dh * up)
        # Reuse `s`, which is no longer read: a new tensor of this width costs a pass over memory.
        return None, dgate, s.detach().mul_(dh)
