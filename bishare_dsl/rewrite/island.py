"""An island: the linear layers that read one input, with what the adapter adds to them, run as one.

Module by module, autograd makes a gradient of the input for each layer and for each factor and then adds
them up; as one function, each product is accumulated into the same tensor. What the layers give is written
to in place: no one else has seen it yet. Both hold only where nothing looks at the layers one by one, which
is decided at each call. Where something does, the layers are called as they stand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from bishare_dsl.rewrite import ops

Spans = tuple[tuple[int, int], ...]
"""Which rows of the island's ``A`` a layer uses: the first and how many, for each run of them."""


def island(
    x: Tensor,
    read: Tensor,
    a: ops.Factor | None,
    linears: Sequence[nn.Module],
    spans: Sequence[Spans],
    bs: Sequence[ops.Factor | None],
) -> tuple[Tensor, ...]:
    """Compute ``y_i = linear_i(x) + z_i B_i`` for each layer, where ``z = read A^T`` and ``z_i`` are
    the columns of it that the layer uses.

    Args:
        x: ``(..., d_in)``, what the layers read.
        read: ``(..., d_in)``, what the factors read: ``x``, or its dropout.
        a: ``(rows, d_in)``, the ``A`` of all terms; None where the island has none.
        linears: the layers.
        spans: for each, its rows of ``A``.
        bs: for each, its ``B``, ``(its rows, d_out)``; None where the adapter adds nothing to it.

    Returns:
        For each layer ``(..., d_out)``.
    """
    layers = frozen_parameters(x, a, linears)
    if layers is None:
        return _one_by_one(x, read, a, linears, spans, bs)
    return fused_island(spans, x, None if read is x else read, a, layers, bs)


def fused_island(
    spans: Sequence[Spans],
    x: Tensor,
    read: Tensor | None,
    a: Any,
    layers: Sequence[Any],
    bs: Sequence[Any],
    gated: tuple[Any, Any, Any] = (None, None, None),
) -> tuple[Tensor, ...]:
    """Compute `island` in one function.

    Args:
        read: None where it is ``x``.
        layers: the weights, then the biases of the layers.
        gated: of an ``x`` that is ``act(gate) * up``, these three: it is made again for the backward.
    """
    again = None
    if not (a is None or isinstance(a, Tensor)):
        again = None if a.again is None else [f if f is None else f.again for f in (a, *bs)]
        a, bs = a.checked(x), [b if b is None else b.factor for b in bs]
    inputs = (x, read, *_cast(x, (a,)), *layers, *_cast(x, bs))
    if torch.is_grad_enabled():
        return _Island.apply(spans, again, *gated, *inputs)  # type: ignore[no-any-return, no-untyped-call]
    return _run(spans, *inputs)[0]


def frozen_parameters(
    x: Tensor, a: ops.Factor | None, linears: Sequence[nn.Module]
) -> list[Any] | None:
    """Return the weights, then the biases of ``linears``, if a function of our own may run in their place.

    That is so for eager calls on plain tensors in their own dtype, where each layer is ``x W^T + b`` with
    frozen ``W`` and ``b``, and nothing looks at its calls. Hooks, which also move offloaded weights;
    quantised and sharded weights; a weight that trains; a class or a forward of someone's own: all are
    seen here, at each call. With one token, what that takes is felt, so that it is written out.
    """
    if not _is_eager(x) or _has_any_global_hook() or ops.autocasts(x.device):
        return None
    if not (a is None or isinstance(a, Tensor) or a.in_order):
        return None
    dtype = x.dtype
    weights: list[Any] = []
    biases: list[Any] = []
    for linear in linears:
        if type(linear) is not nn.Linear or _is_watched(linear):
            return None
        weight, bias = linear._parameters["weight"], linear._parameters["bias"]
        if (
            type(weight) is not nn.Parameter
            or weight.dtype is not dtype
            or weight.requires_grad
            or not (bias is None or (type(bias) is nn.Parameter and not bias.requires_grad))
        ):
            return None
        weights.append(weight)
        biases.append(bias)
    return weights + biases


def _is_eager(x: Tensor) -> bool:
    """Tell whether a call on a tensor runs as it is written, under autograd's backward at most."""
    return (
        type(x) is Tensor
        and not torch.compiler.is_compiling()  # which fuses by itself
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
    )


def is_unwatched(module: nn.Module) -> bool:
    """Tell whether calling a module is running its class's forward and nothing else."""
    return not (_is_watched(module) or _has_any_global_hook())


def _is_watched(module: nn.Module) -> bool:
    own = module.__dict__
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
    )


def _cast(x: Tensor, factors: Sequence[Any]) -> list[Any]:
    """Return factors in the dtype and on the device of ``x``."""
    # Not asked of torch where there is nothing to do: with one token, each call to it is felt.
    dtype, device = x.dtype, x.device
    return [
        factor
        if factor is None or (factor.dtype is dtype and factor.device == device)
        else factor.to(x)
        for factor in factors
    ]


def _run(
    spans: Sequence[Spans], x: Tensor, read: Tensor | None, a: Tensor | None, *rest: Any
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """Compute what `island` gives, and its ``z^T``, ``(rows, tokens)``.

    Factors of several adapters, ``(adapters, rows, width)``, each add to their own part of the tokens:
    so ``z^T`` is ``(adapters, rows, tokens)``.

    Args:
        read: None where it is ``x``.
        rest: of the layers, the weights, then the biases, then each ``B``.
    """
    n = len(spans)
    weights, biases, bs = rest[:n], rest[n : 2 * n], rest[2 * n :]
    # On its side: with few columns a product takes longer, and what belongs to a layer lies apart.
    z = None if a is None else a @ _tokens_of(a, x if read is None else read).mT
    ys = []
    for weight, bias, b, mine in zip(weights, biases, bs, spans, strict=True):
        y = F.linear(x, weight, bias)
        if b is not None:
            # No reshape, which may copy: this is to be written to.
            add(y.view(*b.shape[:-2], -1, y.shape[-1]), _part_of(z, mine, -2).mT, b)
        ys.append(y)
    return tuple(ys), z


def gradients_with_history(
    forward: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor | None],
    ctx: Any,
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Find the gradients of ``forward(*inputs)``, with a history: someone differentiates twice.

    What was saved of the forward has none, so it is run again, under autograd.
    """
    needed = ctx.needs_input_grad[-len(inputs) :]
    # Aliases: one input may be made from another, and each is to get its own part alone.
    pairs = zip(inputs, needed, strict=True)
    inputs = [t.view_as(t) if t is not None and need else t for t, need in pairs]
    wanted = [t for t, need in zip(inputs, needed, strict=True) if t is not None and need]
    known = [(y, dy) for y, dy in zip(forward(*inputs), grads, strict=True) if dy is not None]
    ys, dys = zip(*known, strict=True)
    found = iter(torch.autograd.grad(ys, wanted, dys, create_graph=True, allow_unused=True))
    return [next(found) if need else None for need in needed]


def _one_by_one(
    x: Tensor,
    read: Tensor,
    a: ops.Factor | None,
    linears: Sequence[nn.Module],
    spans: Sequence[Spans],
    bs: Sequence[ops.Factor | None],
) -> tuple[Tensor, ...]:
    """Compute `island` as the graph had it before: the layers are called, and hooks see what they give."""
    # What knows whose each row is asks for the axis that they are in.
    read = _flat(read) if isinstance(a, Tensor) else read
    z = None if a is None else ops.down(read, a)
    ys = []
    for linear, mine, b in zip(linears, spans, bs, strict=True):
        y = linear(x)
        ys.append(y if b is None else ops.up(y, _part_of(z, mine, -1), b))
    return tuple(ys)


def _flat(x: Tensor) -> Tensor:
    """View ``(..., d)`` as ``(tokens, d)``."""
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def _tokens_of(factor: Tensor, x: Tensor) -> Tensor:
    """View ``(..., d)`` as ``(tokens, d)``, or ``(adapters, tokens, d)`` where a factor has adapters."""
    return x.reshape(*factor.shape[:-2], -1, x.shape[-1])


def add(total: Tensor, left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
    """Add a product to a total in place, for each adapter where there are several."""
    if total.dim() == 2:
        return total.addmm_(left, right, alpha=scale)
    if left.shape[2] == 1:  # Which torch would do by a loop.
        return total.addcmul_(left, right, value=scale)
    return total.baddbmm_(left, right, alpha=scale)


def _part_of(z: Tensor | None, spans: Spans, dim: int) -> Tensor:
    """Take of ``z`` what belongs to some rows of ``A``, which lie along a dimension of it."""
    assert z is not None
    if len(spans) == 1:
        start, rows = spans[0]
        return z if rows == z.shape[dim] else z.narrow(dim, start, rows)
    return torch.cat([z.narrow(dim, start, rows) for start, rows in spans], dim)


def _factor_gradients(
    dys: Sequence[Tensor | None],
    z: Tensor,
    spans: Sequence[Spans],
    bs: Sequence[Tensor | None],
    wanted: Sequence[bool],
) -> tuple[Tensor, list[Tensor | None]]:
    """Find ``dz_i^T = sum of B_i dy_i^T``, and ``dB_i = z_i^T dy_i`` where it is wanted.

    Args:
        dys: ``(tokens, d_out)``, or ``(adapters, tokens, d_out)``.
        z: ``(rows, tokens)``, or ``(adapters, rows, tokens)``, as is what is returned.
    """
    dz = torch.zeros_like(z)
    dbs: list[Tensor | None] = []
    for dy, mine, b, want in zip(dys, spans, bs, wanted, strict=True):
        if dy is None or b is None:
            dbs.append(None)
            continue
        first = 0
        for start, rows in mine:
            # Several layers may use the same rows: each adds to them.
            add(dz.narrow(-2, start, rows), b.narrow(-2, first, rows), dy.mT)
            first += rows
        dbs.append(_part_of(z, mine, -2) @ dy if want else None)
    return dz, dbs


def _input_gradient(dys: Sequence[Tensor | None], weights: Sequence[Tensor]) -> Tensor | None:
    """Accumulate ``sum of dy_i W_i`` in one tensor."""
    dx = None
    for dy, weight in zip(dys, weights, strict=True):
        if dy is not None:
            dx = dy @ weight if dx is None else dx.addmm_(dy, weight)
    return dx


class _Island(torch.autograd.Function):
    """`island` with gradients for ``x``, ``read``, ``A`` and each ``B``; the layers are frozen.

    Where ``read`` is ``x``, ``x`` takes both gradients and ``read`` none. Of an ``x`` that is
    ``act(gate) * up`` only ``gate`` and ``up`` are kept; of factors that can be made ``again``, none.
    """

    @staticmethod
    def forward(
        ctx: Any,
        spans: tuple[Spans, ...],
        again: Sequence[Callable[[], Tensor] | None] | None,
        act: nn.Module | None,
        gate: Tensor | None,
        up: Tensor | None,
        x: Tensor,
        *rest: Tensor | None,
    ) -> tuple[Tensor, ...]:
        ys, z = _run(spans, x, *rest)
        ctx.spans, ctx.again, ctx.act = spans, again, act
        ctx.set_materialize_grads(False)
        if again is not None:
            n = len(spans)
            rest = rest[0], None, *rest[2 : 2 + 2 * n], *[None] * n
        ctx.save_for_backward(gate, up, None if act else x, *rest, z)
        # No views, such as a product with a bias gives: who reads them may write to them.
        return tuple(y.data for y in ys)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        n = len(ctx.spans)
        gate, up, *inputs, z = ctx.saved_tensors
        if ctx.again is not None:
            made = [f if f is None else f() for f in ctx.again]
            inputs[2], *inputs[-n:] = _cast(next(dy for dy in grads if dy is not None), made)
        _, _, _, _, _, wants_x, wants_read, wants_a, *wants = ctx.needs_input_grad
        if ctx.act is not None and (wants_a or torch.is_grad_enabled()):
            s = ctx.act(gate)
            # In place where it can be: a new tensor this wide takes as long as a pass.
            inputs[0] = s * up if torch.is_grad_enabled() else s.mul_(up)
        if torch.is_grad_enabled():
            return *[None] * 5, *gradients_with_history(
                lambda *i: _run(ctx.spans, *i)[0], inputs, ctx, grads
            )
        x, read, a, *rest = inputs
        weights, bs = rest[:n], rest[2 * n :]
        dys = [None if dy is None else _flat(dy) for dy in grads]
        dx = _input_gradient(dys, weights) if wants_x else None
        dread = da = None
        dbs: list[Tensor | None] = [None] * n
        if a is not None:
            of_each = [None if dy is None else _tokens_of(a, dy) for dy in dys]
            dz, dbs = _factor_gradients(of_each, z, ctx.spans, bs, wants[2 * n :])
            da = dz @ _tokens_of(a, x if read is None else read) if wants_a else None
            if wants_read:
                dread = (dz.mT @ a).view(read.shape)
            elif read is None and dx is not None:
                add(_tokens_of(a, dx), dz.mT, a)
        if dx is not None:
            dx = dx.view(*next(dy for dy in grads if dy is not None).shape[:-1], dx.shape[-1])
        return *[None] * 5, dx, dread, da, *[None] * (2 * n), *dbs
