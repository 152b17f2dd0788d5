"""An island: the linear layers that read one input and their terms, computed as one function.

Module by module, autograd creates an input gradient for each layer and factor, and then adds them up. A
single function accumulates them in one tensor, and writes terms into the layers' outputs in place, which
nothing else has seen yet. This requires that nothing observes the layers one by one, which is checked at
each call; otherwise the layers are called as modules. Decode steps multiply by the factors as they are.
With more tokens the dense factors of all terms are concatenated, for a single product.
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
from bishare_dsl.rewrite.grouped_rows import RegionRows
from bishare_dsl.transforms.factor import Factor, add_product, map_tensors

Spans = tuple[tuple[int, int], ...]
"""Runs of rows of an island's ``A`` that a layer uses, as start and length."""


Use = tuple[int, int, int, float]
"""A term of a layer.

It has the index of its A in the island, the first row and the number of rows of that A in the
concatenation, and the term's scale.
"""

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
        x: ``(..., d_in)``, the input of the layers.
        read: ``(..., d_in)``, the input of the factors: ``x``, or its dropout.
        downs: each A of the island once; empty without terms.
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
    layers_ = zip(linears, uses, bs, strict=True)
    return tuple(_added(linear(x), z, layer_uses, b, rows) for linear, layer_uses, b in layers_)


def add_terms(
    y: Tensor, read: Tensor, downs: Sequence[ops.Applied], uses: Uses, ups: Sequence[ops.Applied]
) -> Tensor:
    """Compute `island` for one layer that has already returned ``y``, out of place."""
    rows = rows_of(downs)
    if ops.is_decode_step(read, rows):
        output = torch.clone(y if rows is None else rows.repeat(y))
        return _add_in_place(output, _products(read, downs, rows), uses, ups, rows)
    z, (b,) = _low(read, downs, [uses], [ups])
    return _added(y, z, uses, b, rows)


def rows_of(factors: Sequence[ops.Applied]) -> RegionRows | None:
    """Return the row assignment of a mixed batch; None for one adapter."""
    first = factors[0] if factors else None
    return first.rows if isinstance(first, ops.OfRows) else None


# Decode steps: multiply by the factors as they are ----------------------------------------------------


def decode(
    x: Tensor,
    read: Tensor,
    downs: Sequence[Any],
    linears: Sequence[nn.Module],
    uses: Sequence[Uses],
    ups: Sequence[Sequence[Any]],
    rows: RegionRows | None,
) -> tuple[Tensor, ...]:
    """Compute `island` for few tokens, for which launch overhead dominates."""
    z = _products(read, downs, rows) if downs else []
    ys = []
    for linear, layer_uses, bs in zip(linears, uses, ups, strict=True):
        y = own_output(linear, x)
        ys.append(_add_in_place(y, z, layer_uses, bs, rows) if layer_uses else y)
    return tuple(ys)


def own_output(linear: nn.Module, x: Tensor) -> Tensor:
    """Return the layer's output as a fresh tensor that may be written to."""
    if type(linear) is nn.Linear and is_unwatched(linear):
        parameters = linear._parameters
        return F.linear(x, parameters["weight"], parameters["bias"])  # type: ignore[arg-type]
    return torch.clone(linear(x), memory_format=torch.contiguous_format)


def _products(x: Tensor, downs: Sequence[Any], rows: RegionRows | None) -> list[Tensor]:
    """Multiply few tokens by each A, in the dtype of the factors, because converting tokens is cheaper."""
    if rows is None:
        flat = x.view(-1, x.shape[-1]) if x.is_contiguous() else x.reshape(-1, x.shape[-1])
    else:
        flat = rows.gather(x)
        downs = [down.factor for down in downs]
    like = _first_tensor(downs[0])
    if like.dtype is not x.dtype or like.device != x.device:
        flat, downs = _met(flat, downs, like)
    return [down.down(flat) for down in downs]


def _add_in_place(
    y: Tensor, z: Sequence[Tensor], uses: Uses, ups: Sequence[Any], rows: RegionRows | None
) -> Tensor:
    """Add a layer's terms to its output, or to a copy if dtype or row order differ."""
    flat = y.view(-1, y.shape[-1]) if rows is None else rows.grouping.gather(y)
    if rows is not None:
        ups = [up.factor for up in ups]
    like = _first_tensor(ups[0])
    if like.dtype is not y.dtype or like.device != y.device:
        flat, ups = _met(flat, ups, like)
    for (number, _, _, scale), up in zip(uses, ups, strict=True):
        up.add_up(flat, z[number], scale)
    if rows is None or rows.grouping.in_order:
        return y if flat.dtype is y.dtype else flat.to(y.dtype).view(y.shape)
    return rows.grouping.scatter(flat, y).to(y.dtype)


def _first_tensor(factor: Any) -> Tensor:
    first = factor[0]
    while isinstance(first, tuple):
        first = first[0]
    tensor: Tensor = first
    return tensor


def _met(x: Tensor, factors: Sequence[Any], like: Tensor) -> tuple[Tensor, list[Any]]:
    """Return tokens and factors on one device, in the wider of their dtypes."""
    dtype = torch.promote_types(like.dtype, x.dtype)
    device = x.device
    if like.dtype is not dtype or like.device != device:
        factors = [map_tensors(factor, lambda t: t.to(device, dtype)) for factor in factors]
    return x.to(dtype), [*factors]


# Many tokens: concatenate the dense factors of all terms ----------------------------------------------


def joined(
    downs: Sequence[ops.Applied], uses: Sequence[Uses], ups: Sequence[Sequence[ops.Applied]]
) -> list[Tensor | None]:
    """Concatenate the A of all terms, and each layer's scaled B; None if there is none."""
    return [
        _below([down.dense() for down in downs]),
        *(
            _below([_scaled(b.dense(), use[3]) for use, b in zip(layer_uses, bs, strict=True)])
            for layer_uses, bs in zip(uses, ups, strict=True)
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
    """Multiply an input by the A of all terms, and return the result with each layer's B."""
    if not downs:
        return None, [None] * len(uses)
    rows = rows_of(downs)
    # Factors are small, so they are computed in the dtype of training: running, merging and
    # exporting then use the same numbers.
    with ops.without_autocast(read.device):
        a, *bs = joined(downs, uses, ups)
    if rows is not None:
        return torch.bmm(rows.gather(read), a.to(read).mT), bs  # type: ignore[union-attr]
    return F.linear(read.reshape(-1, read.shape[-1]), a.to(read)), bs  # type: ignore[union-attr]


def _added(
    y: Tensor, z: Tensor | None, uses: Uses, b: Tensor | None, rows: RegionRows | None
) -> Tensor:
    """Compute ``y + z B``, out of place."""
    if b is None:
        return y
    with ops.without_autocast(y.device):
        return ops.add_dense(y, select_rows(z, spans_of(uses), -1), b.to(y), 1.0, rows)


@lru_cache(4096)
def spans_of(uses: Uses) -> Spans:
    """Return the rows of an island's A that a layer uses, merging adjacent runs."""
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
    """Compute `island` as one autograd function.

    Args:
        read: None if it equals ``x``.
        layers: the weights of the layers, then their biases.
        gated: activation, gate and up if ``x`` is ``act(gate) * up``, which is then recomputed in the
            backward.
    """
    rows = rows_of(downs)
    spans = tuple(map(spans_of, uses))
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
    """Return a function that recomputes the joined factors in the backward; None if they are saved."""
    if not downs or getattr(downs[0], "recompute", None) is None:
        return None

    def recomputed(factors: Sequence[Any]) -> list[Factor]:
        return [factor.recompute() for factor in factors]

    return lambda: joined(recomputed(downs), uses, [recomputed(bs) for bs in ups])


def frozen_parameters(
    x: Tensor, rows: RegionRows | None, linears: Sequence[nn.Module]
) -> list[Any] | None:
    """Return the weights, then the biases of ``linears``, if one function may replace their calls.

    This requires eager calls on plain tensors in the layers' dtype, where each layer is ``x W^T + b``
    with frozen ``W`` and ``b``, without hooks. Offloaded, quantised and sharded weights, trainable
    weights, and subclasses or replaced forwards are all detected here, at each call. The checks are
    written inline, because their time matters with one token.
    """
    if not _is_eager(x) or _has_any_global_hook() or ops.autocasts(x.device):
        return None
    if rows is not None and not rows.grouping.in_order:
        return None
    dtype = x.dtype
    weights: list[Any] = []
    biases: list[Any] = []
    for linear in linears:
        if type(linear) is not nn.Linear or _is_watched(linear):
            return None
        weight = linear._parameters["weight"]
        bias = linear._parameters["bias"]
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
    """Tell whether a call on a tensor runs eagerly, recorded by reverse-mode autograd at most."""
    return (
        type(x) is Tensor
        and not torch.compiler.is_compiling()  # it fuses anyway
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
    )


def is_unwatched(module: nn.Module) -> bool:
    """Tell whether calling a module only runs its class's forward."""
    return not (_is_watched(module) or _has_any_global_hook())


def _is_watched(module: nn.Module) -> bool:
    state = module.__dict__
    return bool(
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or "forward" in state
    )


def _cast(x: Tensor, factors: Sequence[Any]) -> list[Any]:
    """Return factors in the dtype and on the device of ``x``."""
    return [None if factor is None else factor.to(x) for factor in factors]


def _run(
    spans: Sequence[Spans], x: Tensor, read: Tensor | None, a: Tensor | None, *rest: Any
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """Compute the outputs of `island`, and its ``z^T``, ``(rows, tokens)``.

    Factors of several adapters, ``(adapters, rows, width)``, each add to their own part of the tokens.
    Then ``z^T`` is ``(adapters, rows, tokens)``.

    Args:
        read: None if it equals ``x``.
        rest: the layers' weights, then their biases, then each ``B``.
    """
    n = len(spans)
    weights = rest[:n]
    biases = rest[n : 2 * n]
    bs = rest[2 * n :]
    # Transposed, because products with few columns are slower and a layer's columns would not be
    # contiguous.
    z = None if a is None else a @ _tokens_of(a, x if read is None else read).mT
    ys = []
    for weight, bias, b, layer_spans in zip(weights, biases, bs, spans, strict=True):
        y = F.linear(x, weight, bias)
        if b is not None:
            # Not `reshape`, which may copy: the view is written to.
            add_product(
                y.view(*b.shape[:-2], -1, y.shape[-1]), select_rows(z, layer_spans, -2).mT, b
            )
        ys.append(y)
    return tuple(ys), z


def gradients_with_history(
    forward: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor | None],
    ctx: Any,
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Compute differentiable gradients of ``forward(*inputs)``, for double backward.

    The saved results have no history, so the forward runs again under autograd.
    """
    needed = ctx.needs_input_grad[-len(inputs) :]
    # Aliases separate the gradients of inputs that are computed from each other.
    pairs = zip(inputs, needed, strict=True)
    inputs = [t.view_as(t) if t is not None and need else t for t, need in pairs]
    wanted = [t for t, need in zip(inputs, needed, strict=True) if t is not None and need]
    known = [
        (y, dy)
        for y, dy in zip(forward(*inputs), grads, strict=True)
        # In the first block only the adapter's outputs depend on something that trains.
        if dy is not None and y.requires_grad
    ]
    ys, dys = zip(*known, strict=True)
    gradients = iter(torch.autograd.grad(ys, wanted, dys, create_graph=True, allow_unused=True))
    return [next(gradients) if need else None for need in needed]


def _tokens_of(factor: Tensor, x: Tensor) -> Tensor:
    """Reshape ``(..., d)`` to ``(tokens, d)``, or to ``(adapters, tokens, d)`` for factors of adapters."""
    return x.reshape(*factor.shape[:-2], -1, x.shape[-1])


def select_rows(z: Tensor | None, spans: Spans, dim: int) -> Tensor:
    """Select the part of ``z`` that belongs to some rows of ``A``, along a dimension."""
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
    """Compute ``dz_i^T = sum of B_i dy_i^T``, and ``dB_i = z_i^T dy_i`` if wanted.

    Args:
        dys: ``(tokens, d_out)``, or ``(adapters, tokens, d_out)``.
        z: ``(rows, tokens)``, or ``(adapters, rows, tokens)``; the results have the same layout.
    """
    dz = torch.zeros_like(z)
    dbs: list[Tensor | None] = []
    for dy, layer_spans, b, want in zip(dys, spans, bs, wanted, strict=True):
        if dy is None or b is None:
            dbs.append(None)
            continue
        first = 0
        for start, rows in layer_spans:
            # Accumulate, because several layers may use the same rows.
            add_product(dz.narrow(-2, start, rows), b.narrow(-2, first, rows), dy.mT)
            first += rows
        dbs.append(select_rows(z, layer_spans, -2) @ dy if want else None)
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

    If ``read`` is ``x``, ``x`` receives both gradients and ``read`` none. If ``x`` is ``act(gate) * up``,
    only ``gate`` and ``up`` are saved. Factors that can be recomputed are not saved.
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
        ctx.spans = spans
        ctx.recompute = recompute
        ctx.act = act
        ctx.set_materialize_grads(False)
        if recompute is not None:
            n = len(spans)
            rest = rest[0], None, *rest[2 : 2 + 2 * n], *[None] * n
        ctx.save_for_backward(gate, up, None if act else x, *rest, z)
        # Not views, such as a product with a bias: callers may write to the outputs.
        return tuple(y.data for y in ys)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        n = len(ctx.spans)
        wants_x, wants_read, wants_a, *wants = ctx.needs_input_grad[5:]
        inputs, z = _saved_inputs(ctx, grads, wants_a=wants_a)
        if torch.is_grad_enabled():
            gradients = gradients_with_history(
                lambda *i: _run(ctx.spans, *i)[0], inputs, ctx, grads
            )
            return *[None] * 5, *gradients
        x, read, a, *rest = inputs
        weights = rest[:n]
        bs = rest[2 * n :]
        dys = [None if dy is None else dy.reshape(-1, dy.shape[-1]) for dy in grads]
        dx = _input_gradient(dys, weights) if wants_x else None
        dread = None
        da = None
        dbs: list[Tensor | None] = [None] * n
        if a is not None:
            of_each = [None if dy is None else _tokens_of(a, dy) for dy in dys]
            dz, dbs = _factor_gradients(of_each, z, ctx.spans, bs, wants[2 * n :])
            if wants_a:
                da = dz @ _tokens_of(a, x if read is None else read)
            if wants_read:
                dread = (dz.mT @ a).view(read.shape)
            elif read is None and dx is not None:
                add_product(_tokens_of(a, dx), dz.mT, a)
        if dx is not None:
            dx = dx.view(*_any_of(grads).shape[:-1], dx.shape[-1])
        return *[None] * 5, dx, dread, da, *[None] * (2 * n), *dbs


def _saved_inputs(
    ctx: Any, grads: Sequence[Tensor | None], *, wants_a: bool
) -> tuple[list[Any], Any]:
    """Return ``x``, ``read``, A, weights, biases and each B of an island's forward, and its ``z``.

    What was not saved is recomputed, if it is needed.
    """
    gate, up, *inputs, z = ctx.saved_tensors
    if ctx.recompute is not None:
        inputs[2], *inputs[-len(ctx.spans) :] = _cast(_any_of(grads), ctx.recompute())
    if ctx.act is not None and (wants_a or torch.is_grad_enabled()):
        s = ctx.act(gate)
        # In place if possible: a new tensor of this width takes as long as a pass over memory.
        inputs[0] = s * up if torch.is_grad_enabled() else s.mul_(up)
    return inputs, z


def _any_of(grads: Sequence[Tensor | None]) -> Tensor:
    return next(dy for dy in grads if dy is not None)
