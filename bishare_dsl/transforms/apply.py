"""Compute a term's pair of factors from its transform, its gains and its scale.

`term_factors` is the only definition of a term's computation. Rewriting calls it with proxies, mixed
batches and serving with the tensors of many adapters. `effective_pair` returns the same as dense
matrices, for merging and export.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, TypeVar

from bishare_dsl.transforms.transform import Tensors, Transform, Width

if TYPE_CHECKING:
    from torch import Tensor

    from bishare_dsl.transforms.factor import Factor

K = TypeVar("K")

GAIN_RANK = "gain_rank"
"""The role of the diagonal between the factors, stored ``(1, rows)``."""

GAIN_OUT = "gain_out"
"""The role of the diagonal after the factors, stored ``(1, d_out)``."""


def term_factors(
    transform: Transform, tensors: Tensors, rank: int, width: Width
) -> tuple[Factor, Factor]:
    """Return a term's factors A and B, whose ``scale B^T A`` is dW. The gains are part of B.

    Accepts tensors, and `torch.fx` proxies of tensors.
    """
    from bishare_dsl.transforms.factor import Gained, as_factor

    with device_of(tensors):
        pair = transform.factors(tensors, rank, width)
    a, b = map(as_factor, pair)
    if GAIN_RANK in tensors or GAIN_OUT in tensors:
        b = Gained(b, tensors.get(GAIN_RANK), tensors.get(GAIN_OUT))
    return a, b


def device_of(tensors: Tensors) -> AbstractContextManager[object]:
    """Let a transform create its constants on the device of its tensors, inside the block."""
    import torch

    first: object = next(iter(tensors.values()))
    if not isinstance(first, torch.Tensor) or first.device.type == "cpu":
        return nullcontext()
    return first.device


def effective_pair(
    transform: Transform, tensors: Tensors, rank: int, width: Width, scale: float
) -> tuple[Tensor, Tensor]:
    """Compute ``A (rows, d_in)`` and ``B (rows, d_out)`` of a term, whose ``B^T A`` is dW.

    The gains and the scale are folded into B.
    """
    a, b = term_factors(transform, tensors, rank, width)
    return a.dense(), (b.dense() if scale == 1 else b.dense() * scale)


def effective_pairs(
    transform: Transform, tensors: Tensors, count: int, rank: int, width: Width, scale: float
) -> tuple[Tensor, Tensor]:
    """Compute the pairs of many adapters, sites or experts: ``A (n, rows, d_in)``, ``B (n, rows, d_out)``.

    Args:
        transform: common to all.
        tensors: by role; see `vmap_factors`.
        count: n.
        rank: see `effective_pair`, also for the remaining arguments.
    """
    from bishare_dsl.transforms.factor import Dense

    def make(given: Tensors) -> list[Factor]:
        return [*map(Dense, effective_pair(transform, given, rank, width, scale))]

    a, b = vmap_factors(make, tensors, count)
    return a.dense(), b.dense()


def vmap_factors(
    make: Callable[[Mapping[K, Tensor]], Sequence[Factor]], given: Mapping[K, Tensor], count: int
) -> tuple[Factor, ...]:
    """Compute the factors of many adapters, sites or experts together, each ``(n, rows, side)``.

    Args:
        make: returns the factors of one, ``(rows, side)`` each, from tensors ``(rows, columns)``.
        given: tensors ``(n, rows, columns)`` if they differ, or ``(rows, columns)`` if shared. Factors
            that depend on shared tensors only are computed once, and expanded as views.
        count: n.
    """
    from torch import vmap

    from bishare_dsl.transforms.factor import map_tensors, tensors_of

    dims = {key: 0 if tensor.dim() == 3 else None for key, tensor in given.items()}
    if all(dim is None for dim in dims.values()):
        return tuple(
            map_tensors(factor, lambda tensor: tensor.expand(count, *tensor.shape))
            for factor in make(given)
        )
    factors: Sequence[Factor] = ()

    def made(given: Mapping[K, Tensor]) -> list[Tensor]:
        nonlocal factors
        factors = make(given)
        return [tensor for factor in factors for tensor in tensors_of(factor)]

    tensors = iter(vmap(made, in_dims=(dims,))(dict(given)))
    return tuple(map_tensors(factor, lambda _: next(tensors)) for factor in factors)


def stack_or_share(tensors: Sequence[Tensor]) -> Tensor:
    """Stack tensors, or return the tensor itself if all are the same object, for `vmap_factors`."""
    import torch

    first = tensors[0]
    return first if all(tensor is first for tensor in tensors) else torch.stack([*tensors])


def update_of(
    transform: Transform, x: Tensor, tensors: Tensors, rank: int, width: Width, scale: float
) -> Tensor:
    """Return the update ``(..., d_out)`` of a term that is not linear in ``x (..., d_in)``, scaled."""
    with device_of(tensors):
        delta = transform.update(x, tensors, rank, width)
    if (gain := tensors.get(GAIN_OUT)) is not None:
        delta = delta * gain
    return delta if scale == 1 else delta * scale
