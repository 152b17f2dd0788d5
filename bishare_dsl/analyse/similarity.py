"""Measure how similar the updates of modules are, pair by pair."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bishare_dsl.analyse.update import Factored, Update


@dataclass(frozen=True)
class Measure:
    """One number for two modules: from -1 to 1 if ``signed``, else from 0 to 1."""

    name: str
    title: str
    meaning: str
    signed: bool = False


MEASURES = (
    Measure(
        "rmi",
        "RMI",
        "Relative mutual information, as the paper defines it (Eq. 7-10). It compares two standard "
        "deviations and nothing else, so it cannot detect sharing: chance scores as high.",
    ),
    Measure(
        "cosine",
        "cosine",
        "How similar two updates are, entry by entry: 1 if they are equal up to their size, 0 if unrelated. "
        "High values mean that two modules could share one update.",
        signed=True,
    ),
    Measure(
        "angles_in",
        "angles of A",
        "Whether two updates read the same directions of their input: 1 if one A would do for both "
        "modules, 0 if they have none in common (mean squared cosine of the principal angles).",
    ),
    Measure(
        "angles_out",
        "angles of B",
        "Whether two updates write the same directions of their output: 1 if one B would do for both "
        "modules, 0 if they have none in common.",
    ),
)


def similarity(updates: Sequence[Update]) -> dict[str, torch.Tensor]:
    """Return each measure for every pair of updates, (n, n) float64, with NaN if their widths differ.

    The angles of the input side exclude known initial values; the other measures compare dW.
    """
    return {
        "rmi": _rmi(updates),
        "cosine": _cosine(updates),
        "angles_in": _angles([u.trained.right for u in updates]),
        "angles_out": _angles([u.whole.left for u in updates]),
    }


def _rmi(updates: Sequence[Update]) -> torch.Tensor:
    sizes = torch.tensor([float(u.site.d_in * u.site.d_out) for u in updates])
    energies = torch.tensor([u.whole.energy for u in updates], dtype=torch.float64)
    means = torch.tensor([u.whole.mean for u in updates], dtype=torch.float64)
    return rmi(means, energies / sizes, sizes)


def rmi(means: torch.Tensor, squares: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Return the relative mutual information of every pair of n matrices (the paper's Equations 7 to 10).

    The result is (n, n) float64, with NaN if an entropy is 0 or undefined. It is computed from means and
    norms alone. The entropy of a matrix is the entropy of a normal distribution with the standard
    deviation of its entries; the joint entropy uses the entries of both. The measure ignores positions,
    so independent random matrices of one scale score 1.

    Args:
        means: of the entries of each matrix, (n,).
        squares: the mean of the squares of the entries, (n,).
        sizes: the number of entries of each matrix, (n,).
    """
    means, squares, sizes = means.double(), squares.double(), sizes.double()
    entropies = _entropy(squares - means.square())
    weight = sizes[:, None] / (sizes[:, None] + sizes)
    mean = weight * means[:, None] + (1 - weight) * means
    square = weight * squares[:, None] + (1 - weight) * squares
    information = entropies[:, None] + entropies - _entropy(square - mean.square())
    relative = information / torch.minimum(entropies[:, None], entropies)
    return relative.where(relative.isfinite(), torch.nan)


def _entropy(variance: torch.Tensor) -> torch.Tensor:
    """Compute Equation 8, ``log(sigma) + log(2 pi) / 2 + 1 / 2``."""
    return 0.5 * torch.log(variance.clamp(min=0)) + 0.5 * math.log(2 * math.pi) + 0.5


def _cosine(updates: Sequence[Update]) -> torch.Tensor:
    """Compute ``<dW_i, dW_j> = tr((B_i^T B_j)(A_j A_i^T))`` over the norms."""
    n = len(updates)
    cosines = torch.full((n, n), torch.nan, dtype=torch.float64)
    for members in _groups_of_equal([(u.site.d_in, u.site.d_out) for u in updates]):
        whole: list[Factored] = [updates[i].whole for i in members]
        blocks = Blocks([w.rank for w in whole])
        left, right = (
            torch.cat(rows) for rows in zip(*((w.left, w.right) for w in whole), strict=True)
        )
        values = torch.cat([w.values for w in whole])
        products = (left @ left.t()) * (right @ right.t()) * values[:, None] * values
        sums = blocks.sums(products)
        norms = sums.diagonal().clamp(min=0).sqrt()
        _put(cosines, members, sums / (norms[:, None] * norms))
    return cosines


def _angles(sides: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the mean squared cosine of the principal angles of every pair of sets of orthonormal rows."""
    n = len(sides)
    angles = torch.full((n, n), torch.nan, dtype=torch.float64)
    for members in _groups_of_equal([side.shape[1] for side in sides]):
        here = [sides[i] for i in members]
        rows = torch.cat(here)
        ranks = torch.tensor([float(len(side)) for side in here], dtype=torch.float64)
        sums = Blocks([len(side) for side in here]).sums((rows @ rows.t()).square())
        _put(angles, members, sums / torch.minimum(ranks[:, None], ranks))
    return angles


class Blocks:
    """Sums over the blocks of modules in a matrix of all their rows."""

    def __init__(self, ranks: Sequence[int]):
        self._owner = torch.repeat_interleave(torch.arange(len(ranks)), torch.tensor(ranks))
        self._n = len(ranks)

    def sums(self, matrix: torch.Tensor) -> torch.Tensor:
        """Sum a matrix (all rows, all rows) block by block, (n, n) float64."""
        rows = torch.zeros(self._n, matrix.shape[1], dtype=torch.float64)
        rows.index_add_(0, self._owner, matrix.double())
        both = torch.zeros(self._n, self._n, dtype=torch.float64)
        return both.index_add_(1, self._owner, rows)


def _groups_of_equal(keys: Sequence[object]) -> list[list[int]]:
    groups: dict[object, list[int]] = {}
    for i, key in enumerate(keys):
        groups.setdefault(key, []).append(i)
    return list(groups.values())


def _put(into: torch.Tensor, members: Sequence[int], values: torch.Tensor) -> None:
    index = torch.tensor(members)
    into[index[:, None], index] = values
