"""Rotary position embedding with fewer passes over memory, forth and back, and nothing kept but the angles.

Written as ``x * cos + rotate_half(x) * sin``, autograd keeps slices of ``x`` apart and fills each into zeros
again. The gradient of a rotation is a rotation: it needs neither.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx

from bishare_dsl.rewrite.island import is_eager
from bishare_dsl.rewrite.leaves import global_function


def rotary(
    module_name: str, name: str, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """Queries and keys, rotated by the function `name` of the Python module `module_name` as it stands now.

    It is called, unless it is proved to be the formula of this file and nothing can see the difference.

    Args:
        q, k: ``(batch, heads, tokens, d_head)``.
        cos, sin: ``(batch, tokens, d_head)`` or ``(1, tokens, d_head)``.
    """
    function = global_function(module_name, name)
    if not (_fits(q, cos, sin) and _fits(k, cos, sin) and is_rotation(function)):
        result: tuple[Tensor, Tensor] = function(q, k, cos, sin)
        return result
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    if torch.is_grad_enabled():
        return _Rotary.apply(q, cos, sin), _Rotary.apply(k, cos, sin)  # type: ignore[no-untyped-call]
    return _rotate(q, cos, sin), _rotate(k, cos, sin)


def is_rotation(function: Callable[..., Any]) -> bool:
    """Whether a function computes what `_formula` does, by the operations that it calls for."""
    helper = getattr(function, "__globals__", {}).get("rotate_half")
    return _is_rotation(function, helper)


@lru_cache(maxsize=64)
def _is_rotation(function: Callable[..., Any], _helper: object) -> bool:
    # The helper is looked up at each call, so that a change of it is another question.
    return (found := _operations(function)) is not None and found == _operations(_formula)


def _operations(function: Callable[..., Any]) -> list[Any] | None:
    """What a function of four tensors calls for, in order; None where that depends on values."""
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    inputs = [fx.Proxy(graph.placeholder(name), tracer) for name in ("q", "k", "cos", "sin")]
    try:
        graph.output(tracer.create_arg(function(*inputs)))
    except Exception:  # noqa: BLE001 - someone's own function may do anything with a proxy
        return None
    places = {node: f"#{place}" for place, node in enumerate(graph.nodes)}
    return [
        (n.op == "placeholder" or n.target, *fx.map_arg((n.args, n.kwargs), places.__getitem__))
        for n in graph.nodes
    ]


def _formula(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Each pair of one position's features, half a head apart, turned by the position's angle."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return _turned(q, cos, sin), _turned(k, cos, sin)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    def rotate_half(x: Tensor) -> Tensor:
        first = x[..., : x.shape[-1] // 2]
        second = x[..., x.shape[-1] // 2 :]
        return torch.cat((-second, first), dim=-1)

    return (x * cos) + (rotate_half(x) * sin)


def _fits(x: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether our own function may run: for eager calls on plain tensors whose shapes need no stretching."""
    return (
        is_eager(x)
        and x.dim() == 4
        and x.shape[-1] % 2 == 0
        and cos.shape == sin.shape
        and cos.shape[1:] == x.shape[2:]
        and (cos.shape[0] == 1 or cos.shape[0] == x.shape[0])
        and x.dtype is cos.dtype is sin.dtype
        and not (cos.requires_grad or sin.requires_grad)
    )


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`_turned` to the bit: ``-a * b`` is ``-(a * b)``."""
    half = x.shape[-1] // 2
    other = x.roll(half, -1).mul_(sin)
    other.narrow(-1, 0, half).neg_()
    return (x * cos).add_(other)  # laid out in memory as `x` is


class _Rotary(torch.autograd.Function):
    """`_turned` with a gradient for ``x``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        cos, sin = ctx.saved_tensors
        half = dy.shape[-1] // 2
        if torch.is_grad_enabled():  # Someone differentiates twice.
            second, first = (dy * sin).roll(half, -1).split(half, -1)
            return dy * cos + torch.cat((second, -first), -1), None, None
        dx = dy * cos
        first, second = dx.split(half, -1)
        dy_first, dy_second = dy.split(half, -1)
        sin_first, sin_second = sin.split(half, -1)
        first.addcmul_(dy_second, sin_second)
        second.addcmul_(dy_first, sin_first, value=-1)
        return dx, None, None
