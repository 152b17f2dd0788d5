"""An island: the linear layers that read one input, with what the adapter adds to them, run as one.

Module by module, autograd makes a gradient of the input for each layer and for each factor and then adds
them up; as one function, each product is accumulated into the same tensor. What the layers give is written
to in place: no one else has seen it yet. Both hold only where nothing looks at the layers one by one, which
is decided at each call. Where something does, the layers are called as they stand. In a decode step factors
multiply as they are; otherwise the dense ones of all terms stand below each other, and there is one product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from bishare_dsl.rewrite import ops
from bishare_dsl.transforms.factor import Factor, add_product, map_tensors

Spans = tuple[tuple[int, int], ...]
"""Which rows of an island's ``A`` a layer uses: the first and how many, for each run of them."""


Use = tuple[int, int, int, float]
"""A term of a layer: the number of its A among the island's, the first of that A's rows where all stand below
each other, how many there are, and the scale of the term."""

Uses = tuple[Use, ...]


def island(
    x: Tensor,
    read: Tensor,
    downs: Sequence[ops.Applied],
    linears: Sequence[nn.Module],
    uses: Sequence[Uses],
    ups: Sequence[Sequence[ops.Applied]],
) -> tuple[Tensor, ...]:
    """Compute ``linear_i(x) + sum_t scale_t (read A_t^T) B_t`` for each layer, over its terms.

    Args:
        x: ``(..., d_in)``, what the layers read.
        read: ``(..., d_in)``, what the factors read: ``x``, or its dropout.
        downs: each A of the island once; none where it has no terms.
        linears: the layers.
        uses: for each layer, its terms, in the order of their rows.
        ups: for each layer, the B of its terms.

    Returns:
        For each layer ``(..., d_out)``.
    """
    rows = rows_of(downs)
    if ops.is_decode_step(x, rows):
        return decode(x, read, downs, linears, uses, ups, rows)
    layers = frozen_parameters(x, rows, linears)
    if layers is not None:
        return fused_island(x, None if read is x else read, downs, layers, uses, ups)
    z, bs = _low(read, downs, uses, ups)
    its = zip(linears, uses, bs, strict=True)
    return tuple(_added(linear(x), z, mine, b, rows) for linear, mine, b in its)


def add_terms(
    y: Tensor, read: Tensor, downs: Sequence[ops.Applied], uses: Uses, ups: Sequence[ops.Applied]
) -> Tensor:
    """Compute what `island` does for one layer that has run and gave ``y``, out of place."""
    rows = rows_of(downs)
    if ops.is_decode_step(read, rows):
        own = torch.clone(y if rows is None else rows.repeat(y))
        return _add_in_place(own, _products(read, downs, rows), uses, ups, rows)
    z, (b,) = _low(read, downs, [uses], [ups])
    return _added(y, z, uses, b, rows)


def rows_of(factors: Sequence[ops.Applied]) -> ops.Rows | None:
    """Return whose each row is in a mixed batch; None for one adapter."""
    first = factors[0] if factors else None
    return first.rows if isinstance(first, ops.OfRows) else None


# A decode step: factors multiply as they are ----------------------------------------------------------


def decode(
    x: Tensor,
    read: Tensor,
    downs: Sequence[Any],
    linears: Sequence[nn.Module],
    uses: Sequence[Uses],
    ups: Sequence[Sequence[Any]],
    rows: ops.Rows | None,
) -> tuple[Tensor, ...]:
    """Compute `island` for few tokens: the calls of torch are what takes the time, not arithmetic."""
    z = _products(read, downs, rows) if downs else []
    ys = []
    for linear, mine, bs in zip(linears, uses, ups, strict=True):
        y = own_output(linear, x)
        ys.append(_add_in_place(y, z, mine, bs, rows) if mine else y)
    return tuple(ys)


def own_output(linear: nn.Module, x: Tensor) -> Tensor:
    """Call a layer of the base, and return what nobody else has: terms are added to it in place."""
    if type(linear) is nn.Linear and is_unwatched(linear):
        own = linear._parameters
        return F.linear(x, own["weight"], own["bias"])  # type: ignore[arg-type]
    return torch.clone(linear(x), memory_format=torch.contiguous_format)


def _products(x: Tensor, downs: Sequence[Any], rows: ops.Rows | None) -> list[Tensor]:
    """Multiply few tokens by each A, in the dtype of the factors: tokens are less than these."""
    if rows is None:
        flat = x.view(-1, x.shape[-1]) if x.is_contiguous() else x.reshape(-1, x.shape[-1])
    else:
        rows.check(x)
        flat = rows.gather(x)
        downs = [down.factor for down in downs]
    like = _first_tensor(downs[0])
    if like.dtype is not x.dtype or like.device != x.device:
        flat, downs = _met(flat, downs, like)
    return [down.down(flat) for down in downs]


def _add_in_place(
    y: Tensor, z: Sequence[Tensor], uses: Uses, ups: Sequence[Any], rows: ops.Rows | None
) -> Tensor:
    """Add the terms of a layer to what it gave, or to a copy in a wider dtype or in another order."""
    flat = y.view(-1, y.shape[-1]) if rows is None else rows.gather(y)
    if rows is not None:
        ups = [up.factor for up in ups]
    like = _first_tensor(ups[0])
    if like.dtype is not y.dtype or like.device != y.device:
        flat, ups = _met(flat, ups, like)
    for (number, _, _, scale), up in zip(uses, ups, strict=True):
        up.add_up(flat, z[number], scale)
    if rows is None or rows.in_order:
        return y if flat.dtype is y.dtype else flat.to(y.dtype).view(y.shape)
    return rows.scatter(flat, y).to(y.dtype)


def _first_tensor(factor: Any) -> Tensor:
    first = factor[0]
    while isinstance(first, tuple):
        first = first[0]
    found: Tensor = first
    return found


def _met(x: Tensor, factors: Sequence[Any], like: Tensor) -> tuple[Tensor, list[Any]]:
    """Return few tokens and factors on one device, in the wider of their dtypes."""
    dtype, device = torch.promote_types(like.dtype, x.dtype), x.device
    if like.dtype is not dtype or like.device != device:
        factors = [map_tensors(factor, lambda t: t.to(device, dtype)) for factor in factors]
    return x.to(dtype), [*factors]


# Many tokens: the dense factors of all terms in one product -------------------------------------------


def joined(
    downs: Sequence[ops.Applied], uses: Sequence[Uses], ups: Sequence[Sequence[ops.Applied]]
) -> list[Tensor | None]:
    """Make the A of all terms, below each other, and each layer's B, scaled; None where there is none."""
    return [
        _below([down.dense() for down in downs]),
        *(
            _below([_scaled(b.dense(), use[3]) for use, b in zip(mine, bs, strict=True)])
            for mine, bs in zip(uses, ups, strict=True)
        ),
    ]


def _scaled(b: Tensor, scale: float) -> Tensor:
    return b if scale == 1 else b * scale


def _below(factors: Sequence[Tensor]) -> Tensor | None:
    if len(factors) > 1:
        return torch.cat([*factors], -2)
    return factors[0] if factors else None


def _low(
    read: Tensor,
    downs: Sequence[ops.Applied],
    uses: Sequence[Uses],
    ups: Sequence[Sequence[ops.Applied]],
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Multiply an input by the A of all terms, and return each layer's B."""
    if not downs:
        return None, [None] * len(uses)
    rows = rows_of(downs)
    # Factors are small, and made in the precision they are trained in: what runs, what merges and what is
    # exported are then the same numbers.
    with ops.without_autocast(read.device):
        a, *bs = joined(downs, uses, ups)
    if rows is not None:
        rows.check(read)
        return torch.bmm(rows.gather(read), a.to(read).mT), bs  # type: ignore[union-attr]
    return F.linear(_flat(read), a.to(read)), bs  # type: ignore[union-attr]


def _added(
    y: Tensor, z: Tensor | None, uses: Uses, b: Tensor | None, rows: ops.Rows | None
) -> Tensor:
    """Compute ``y + z B``, out of place."""
    if b is None:
        return y
    with ops.without_autocast(y.device):
        return ops.add_dense(y, part_of(z, spans_of(uses), -1), b.to(y), 1.0, rows)


@lru_cache(4096)
def spans_of(uses: Uses) -> Spans:
    """Return the rows of an island's A that a layer uses; neighbours are one span."""
    spans: list[tuple[int, int]] = []
    for _, start, rows, _ in uses:
        if spans and sum(spans[-1]) == start:
            spans[-1] = spans[-1][0], spans[-1][1] + rows
        else:
            spans.append((start, rows))
    return tuple(spans)


def fused_island(
    x: Tensor,
    read: Tensor | None,
    downs: Sequence[ops.Applied],
    layers: Sequence[Any],
    uses: Sequence[Uses],
    ups: Sequence[Sequence[ops.Applied]],
    gated: tuple[Any, Any, Any] = (None, None, None),
) -> tuple[Tensor, ...]:
    """Compute `island` in one function.

    Args:
        read: None where it is ``x``.
        layers: the weights, then the biases of the layers.
        gated: of an ``x`` that is ``act(gate) * up``, these three: it is recomputed for the backward.
    """
    rows, spans = rows_of(downs), tuple(map(spans_of, uses))
    if rows is not None:
        rows.check(x)
    a, *bs = joined(downs, uses, ups)
    inputs = (x, read, *_cast(x, (a,)), *layers, *_cast(x, bs))
    if torch.is_grad_enabled():
        return _Island.apply(spans, _recompute(downs, uses, ups), *gated, *inputs)  # type: ignore[no-any-return, no-untyped-call]
    return _run(spans, *inputs)[0]


def _recompute(
    downs: Sequence[ops.Applied], uses: Sequence[Uses], ups: Sequence[Sequence[ops.Applied]]
) -> Callable[[], list[Tensor | None]] | None:
    """Return what makes the joined factors again for a backward; None where they are kept."""
    if not downs or getattr(downs[0], "recompute", None) is None:
        return None

    def again(factors: Sequence[Any]) -> list[Factor]:
        return [factor.recompute() for factor in factors]

    return lambda: joined(again(downs), uses, [again(bs) for bs in ups])


def frozen_parameters(
    x: Tensor, rows: ops.Rows | None, linears: Sequence[nn.Module]
) -> list[Any] | None:
    """Return the weights, then the biases of ``linears``, if a function of our own may run in their place.

    That is so for eager calls on plain tensors in their own dtype, where each layer is ``x W^T + b`` with
    frozen ``W`` and ``b``, and nothing looks at its calls. Hooks, which also move offloaded weights;
    quantised and sharded weights; a weight that trains; a class or a forward of someone's own: all are
    seen here, at each call. With one token, what that takes is felt, so that it is written out.
    """
    if not _is_eager(x) or _has_any_global_hook() or ops.autocasts(x.device):
        return None
    if rows is not None and not rows.in_order:
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
            add_product(y.view(*b.shape[:-2], -1, y.shape[-1]), part_of(z, mine, -2).mT, b)
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


def _flat(x: Tensor) -> Tensor:
    """View ``(..., d)`` as ``(tokens, d)``."""
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def _tokens_of(factor: Tensor, x: Tensor) -> Tensor:
    """View ``(..., d)`` as ``(tokens, d)``, or ``(adapters, tokens, d)`` where a factor has adapters."""
    return x.reshape(*factor.shape[:-2], -1, x.shape[-1])


def part_of(z: Tensor | None, spans: Spans, dim: int) -> Tensor:
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
            add_product(dz.narrow(-2, start, rows), b.narrow(-2, first, rows), dy.mT)
            first += rows
        dbs.append(part_of(z, mine, -2) @ dy if want else None)
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
    ``act(gate) * up`` only ``gate`` and ``up`` are kept; of factors that can be recomputed, none.
    """

    @staticmethod
    def forward(
        ctx: Any,
        spans: tuple[Spans, ...],
        recompute: Callable[[], list[Tensor | None]] | None,
        act: nn.Module | None,
        gate: Tensor | None,
        up: Tensor | None,
        x: Tensor,
        *rest: Tensor | None,
    ) -> tuple[Tensor, ...]:
        ys, z = _run(spans, x, *rest)
        ctx.spans, ctx.recompute, ctx.act = spans, recompute, act
        ctx.set_materialize_grads(False)
        if recompute is not None:
            n = len(spans)
            rest = rest[0], None, *rest[2 : 2 + 2 * n], *[None] * n
        ctx.save_for_backward(gate, up, None if act else x, *rest, z)
        # No views, such as a product with a bias gives: who reads them may write to them.
        return tuple(y.data for y in ys)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        n = len(ctx.spans)
        gate, up, *inputs, z = ctx.saved_tensors
        if ctx.recompute is not None:
            like = next(dy for dy in grads if dy is not None)
            inputs[2], *inputs[-n:] = _cast(like, ctx.recompute())
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
                add_product(_tokens_of(a, dx), dz.mT, a)
        if dx is not None:
            dx = dx.view(*next(dy for dy in grads if dy is not None).shape[:-1], dx.shape[-1])
        return *[None] * 5, dx, dread, da, *[None] * (2 * n), *dbs
