"""Relative mutual information as the paper has it (Equations 7 to 10), from means and norms alone.

The entropy of a matrix is that of a normal distribution with the standard deviation of its entries, and the
joint entropy of two that of all their entries together. So it knows two standard deviations (and two means),
and nothing of which entry is where: independent random matrices of one scale score 1.
"""

from __future__ import annotations

import math

import torch


def rmi(means: torch.Tensor, squares: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Return the RMI of each two of n matrices, (n, n) float64; NaN where an entropy is 0 or none.

    Args:
        means: of the entries of each matrix, (n,).
        squares: the mean of the squares of the entries, (n,).
        sizes: how many entries each has, (n,).
    """
    means, squares, sizes = means.double(), squares.double(), sizes.double()
    own = _entropy(squares - means.square())
    weight = sizes[:, None] / (sizes[:, None] + sizes)
    mean = weight * means[:, None] + (1 - weight) * means
    square = weight * squares[:, None] + (1 - weight) * squares
    information = own[:, None] + own - _entropy(square - mean.square())
    found = information / torch.minimum(own[:, None], own)
    return found.where(found.isfinite(), torch.nan)


def _entropy(variance: torch.Tensor) -> torch.Tensor:
    """Compute Equation 8, ``log(sigma) + log(2 pi) / 2 + 1 / 2``."""
    return 0.5 * torch.log(variance.clamp(min=0)) + 0.5 * math.log(2 * math.pi) + 0.5
