"""A term as one low-rank pair: its transform, then its gains and its scale.

The one definition of what a term computes. Merging and export call it with tensors, rewriting with
proxies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bishare_dsl.transforms.transform import Tensors, Transform, Width

if TYPE_CHECKING:
    from torch import Tensor

GAIN_RANK = "gain_rank"
"""The role of the diagonal between the factors, stored ``(1, rows)``."""

GAIN_OUT = "gain_out"
"""The role of the diagonal behind the factors, stored ``(1, d_out)``."""


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


def raise_rows(
    transform: Transform, z: Tensor, tensors: Tensors, rank: int, width: Width
) -> Tensor:
    """Return what a linear term adds to rows of different adapters, not yet scaled: ``(R, n, d_out)``.

    ``z`` is what `Transform.down_rows` gives. It agrees with `effective_pair`.
    """
    if (gain := tensors.get(GAIN_RANK)) is not None:
        z = z * gain
    y = transform.up_rows(z, tensors, rank, width)
    return y if (gain := tensors.get(GAIN_OUT)) is None else y * gain


def update_of(
    transform: Transform, x: Tensor, tensors: Tensors, rank: int, width: Width, scale: float
) -> Tensor:
    """Return the update ``(..., d_out)`` of a term that is not linear in ``x (..., d_in)``, scaled."""
    delta = transform.update(x, tensors, rank, width)
    if (gain := tensors.get(GAIN_OUT)) is not None:
        delta = delta * gain
    return delta if scale == 1 else delta * scale
