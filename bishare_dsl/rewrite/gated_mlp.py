"""A gated MLP with what the adapter adds to it, run as one, so that less is kept for the backward.

``y = down(act(gate(x)) * up(x))`` keeps four tensors ``(tokens, d_ff)`` for its gradients when it is run
module by module: both inputs of the product, what the activation reads, and the product. Two of them are
enough. The others are made again, which costs two passes over memory beside three large products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import activations

from bishare_dsl.rewrite import ops
from bishare_dsl.rewrite.island import (
    Spans,
    again,
    cast,
    factor_gradients,
    flat,
    frozen_parameters,
    input_gradient,
    is_unwatched,
    island,
    run,
)
from bishare_dsl.rewrite.rows import RowFactor

# Functions of their input alone: called again, they give the same.
_PURE = (
    nn.SiLU,
    nn.GELU,
    nn.ReLU,
    activations.SiLUActivation,
    activations.GELUActivation,
    activations.GELUTanh,
    activations.NewGELUActivation,
)


def gated_mlp(
    x: Tensor,
    a_in: ops.Factor | None,
    linears: tuple[nn.Module, nn.Module],
    spans: tuple[Spans, Spans],
    bs: tuple[ops.Factor | None, ops.Factor | None],
    act: nn.Module,
    a_out: ops.Factor | None,
    down: nn.Module,
    span: Spans,
    b: ops.Factor | None,
) -> Tensor:
    """Compute ``down'(act(gate'(x)) * up'(x))``, where the primes stand for what the adapter adds.

    Args:
        x: ``(..., d_model)``.
        a_in, linears, spans, bs: the island of ``gate`` and ``up``, as in `island`.
        act: the activation.
        a_out, down, span, b: the island of ``down`` alone.

    Returns:
        ``(..., d_model)``.
    """
    rows = isinstance(a_in, RowFactor) or isinstance(a_out, RowFactor)
    layers = frozen_parameters(x, (*linears, down)) if _is_pure(act) else None
    if layers is None or rows:
        gate, up = island(x, x, a_in, linears, spans, bs)
        h = act(gate) * up
        return island(h, h, a_out, (down,), (span,), (b,))[0]
    factors, outs = cast(x, (a_in, a_out)), cast(x, (*bs, b))
    inputs = [x, *factors, *layers, *outs]
    if torch.is_grad_enabled():
        return _GatedMlp.apply(act, (*spans, span), *inputs)  # type: ignore[no-any-return, no-untyped-call]
    y: Tensor = _run(act, (*spans, span), *inputs)[0]
    return y


def _is_pure(act: nn.Module) -> bool:
    """Tell whether an activation gives the same when it is called again, and no one sees that it is."""
    return type(act) in _PURE and is_unwatched(act) and not getattr(act, "inplace", False)


class _GatedMlp(torch.autograd.Function):
    """`gated_mlp` with gradients for ``x`` and the factors; the layers are frozen."""

    @staticmethod
    def forward(ctx: Any, act: nn.Module, spans: tuple[Spans, ...], *inputs: Any) -> Tensor:
        y: Tensor
        y, *kept = _run(act, spans, *inputs)
        ctx.act, ctx.spans = act, spans
        ctx.save_for_backward(*inputs, *kept)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        *inputs, gate, up, z_in, z_out = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (
                None,
                None,
                *again(lambda *i: _run(ctx.act, ctx.spans, *i)[:1], inputs, ctx, [dy]),
            )
        x, a_in, a_out, w_gate, w_up, w_down, *rest = inputs
        bs = rest[3:]
        _, _, wants_x, wants_a_in, wants_a_out, *wants = ctx.needs_input_grad
        wants_b = wants[6:]
        shape, x, dy, up = x.shape, flat(x), flat(dy), flat(up)

        dh = dy @ w_down
        with torch.enable_grad():
            pre = flat(gate).detach().requires_grad_()
            s = ctx.act(pre)
        da_out = da_in = scratch = None
        db_in: Sequence[Tensor | None] = (None, None)
        db_out: Sequence[Tensor | None] = (None,)
        if a_out is not None:
            dz, db_out = factor_gradients([dy], z_out, ctx.spans[2:], bs[2:], wants_b[2:])
            dh.addmm_(dz, a_out)
            if wants_a_out:
                scratch = s.detach() * up
                da_out = dz.t() @ scratch
        # A tensor this wide is written to again where it can be: to get a new one takes as long as a pass. It
        # is right because each is ours alone and read for the last time: `scratch` by the product above, `dh`
        # by `ds`. What autograd saved (`gate`, `up`, `s`) is never written to.
        ds = dh * up if scratch is None else torch.mul(dh, up, out=scratch)
        (dgate,) = torch.autograd.grad(s, pre, ds)
        dup = dh.mul_(s.detach())
        del s, pre, ds, scratch, up, gate

        dx = input_gradient([dgate, dup], [w_gate, w_up]) if wants_x else None
        if a_in is not None:
            dys = [dgate, dup]
            dz, db_in = factor_gradients(dys, z_in, ctx.spans[:2], bs[:2], wants_b[:2])
            da_in = dz.t() @ x if wants_a_in else None
            if dx is not None:
                dx.addmm_(dz, a_in)
        dx = None if dx is None else dx.view(shape)
        return None, None, dx, da_in, da_out, *[None] * 6, *db_in, *db_out


def _run(
    act: nn.Module,
    spans: tuple[Spans, ...],
    x: Tensor,
    a_in: Tensor | None,
    a_out: Tensor | None,
    *rest: Any,
) -> tuple[Any, ...]:
    """Compute what `gated_mlp` gives, and what its backward needs: ``gate``, ``up``, each island's ``z``."""
    weights, biases, bs = rest[:3], rest[3:6], rest[6:]
    (gate, up), z_in = run(spans[:2], x, None, a_in, *weights[:2], *biases[:2], *bs[:2])
    h = act(gate)
    h = h * up if torch.is_grad_enabled() else h.mul_(up)
    (y,), z_out = run(spans[2:], h, None, a_out, weights[2], biases[2], bs[2])
    return y, gate, up, z_in, z_out
