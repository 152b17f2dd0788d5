"""A term as one low-rank pair: its transform, then its gains and its scale.

The one definition of what a term computes. Merging and export call it with tensors, rewriting with
proxies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from bishare_dsl.transforms.transform import Tensors, Transform, Width

if TYPE_CHECKING:
    from torch import Tensor

K = TypeVar("K")

GAIN_RANK = "gain_rank"
"""The role of the diagonal between the factors, stored ``(1, rows)``."""

GAIN_OUT = "gain_out"
"""The role of the diagonal after the factors, stored ``(1, d_out)``."""


def effective_pair(
    transform: Transform, tensors: Tensors, rank: int, width: Width, scale: float
) -> tuple[Tensor, Tensor]:
    """Make ``A (rows, d_in)`` and ``B (rows, d_out)``: ``scale diag(out) B^T diag(rank) A`` is a term's dW.

    The gains and the scale are folded into B.
    """
    a, b = transform.factors(tensors, rank, width)
    if (gain := tensors.get(GAIN_RANK)) is not None:
        b = b * gain.t()
    if (gain := tensors.get(GAIN_OUT)) is not None:
        b = b * gain
    return a, (b if scale == 1 else b * scale)


def effective_pairs(
    transform: Transform, tensors: Tensors, count: int, rank: int, width: Width, scale: float
) -> tuple[Tensor, Tensor]:
    """Make the pairs of many adapters, sites or experts: ``A (n, rows, d_in)``, ``B (n, rows, d_out)``.

    Args:
        transform: of all of them.
        tensors: by role, as `of_many` takes them.
        count: n.
        rank: as for `effective_pair`, like what follows.
    """
    a, b = of_many(
        lambda given: effective_pair(transform, given, rank, width, scale), tensors, count
    )
    return a, b


def of_many(
    make: Callable[[Mapping[K, Tensor]], Sequence[Tensor]], given: Mapping[K, Tensor], count: int
) -> tuple[Tensor, ...]:
    """Make the factors of many adapters, sites or experts in one go, each ``(n, rows, width)``.

    Args:
        make: makes the factors of one, ``(rows, width)`` each, of tensors ``(rows, columns)``.
        given: tensors ``(n, rows, columns)`` of which each has its own, or ``(rows, columns)`` that all
            share. What comes of shared ones alone is made once, and given as a view.
        count: n.
    """
    from torch import vmap

    dims = {key: 0 if tensor.dim() == 3 else None for key, tensor in given.items()}
    if all(dim is None for dim in dims.values()):
        return tuple(factor.expand(count, *factor.shape) for factor in make(given))
    made: Sequence[Tensor] = vmap(make, in_dims=(dims,))(dict(given))
    return tuple(made)


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Return tensors side by side, or the one that all of them are, as `of_many` takes them."""
    import torch

    first = tensors[0]
    return first if all(tensor is first for tensor in tensors) else torch.stack([*tensors])


def update_of(
    transform: Transform, x: Tensor, tensors: Tensors, rank: int, width: Width, scale: float
) -> Tensor:
    """Return the update ``(..., d_out)`` of a term that is not linear in ``x (..., d_in)``, scaled."""
    delta = transform.update(x, tensors, rank, width)
    if (gain := tensors.get(GAIN_OUT)) is not None:
        delta = delta * gain
    return delta if scale == 1 else delta * scale
