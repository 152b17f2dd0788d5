"""How alike the updates of modules are, two by two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bishare_dsl.analyse.rmi import rmi
from bishare_dsl.analyse.update import Factored, Update


@dataclass(frozen=True)
class Measure:
    """One number for two modules. ``signed`` ones go from -1 to 1, the others from 0 to 1."""

    name: str
    title: str
    meaning: str
    signed: bool = False


MEASURES = (
    Measure(
        "rmi",
        "RMI",
        "Relative mutual information as the paper has it (Eq. 7-10). It depends on the two standard "
        "deviations alone, and so does not see sharing: chance scores as high.",
    ),
    Measure(
        "cosine",
        "cosine",
        "The cosine of the two updates, entry by entry: whether one update would do for both modules.",
        signed=True,
    ),
    Measure(
        "angles_in",
        "angles of A",
        "The mean squared cosine of the principal angles between the inputs that the two updates read: "
        "1 where one A would do for both.",
    ),
    Measure(
        "angles_out",
        "angles of B",
        "The same of the outputs that they write: 1 where one B would do for both.",
    ),
    Measure(
        "cka_in",
        "CKA of A",
        "Linear CKA of the inputs that the two updates read, strong directions counting more.",
    ),
    Measure("cka_out", "CKA of B", "The same of the outputs that they write."),
)


def similarity(updates: Sequence[Update]) -> dict[str, torch.Tensor]:
    """Return each measure of each two updates, (n, n) float64; NaN where their widths differ.

    The input side is compared without starts that are known, as training changed it; all else is of dW.
    """
    inputs = [_Side(u.site.d_in, u.trained.right, u.trained.values) for u in updates]
    outputs = [_Side(u.site.d_out, u.whole.left, u.whole.values) for u in updates]
    angles_in, cka_in = _of_side(inputs)
    angles_out, cka_out = _of_side(outputs)
    return {
        "rmi": _rmi(updates),
        "cosine": _cosine(updates),
        "angles_in": angles_in,
        "angles_out": angles_out,
        "cka_in": cka_in,
        "cka_out": cka_out,
    }


@dataclass(frozen=True)
class _Side:
    """One side of an update: orthonormal ``rows`` (rank, width) and the singular value of each."""

    width: int
    rows: torch.Tensor
    values: torch.Tensor


def _rmi(updates: Sequence[Update]) -> torch.Tensor:
    sizes = torch.tensor([float(u.site.d_in * u.site.d_out) for u in updates])
    energies = torch.tensor([u.whole.energy for u in updates], dtype=torch.float64)
    means = torch.tensor([u.whole.mean for u in updates], dtype=torch.float64)
    return rmi(means, energies / sizes, sizes)


def _cosine(updates: Sequence[Update]) -> torch.Tensor:
    """Compute ``<dW_i, dW_j> = tr((B_i^T B_j)(A_j A_i^T))`` over the norms."""
    n = len(updates)
    found = torch.full((n, n), torch.nan, dtype=torch.float64)
    for members in _alike([(u.site.d_in, u.site.d_out) for u in updates]):
        whole: list[Factored] = [updates[i].whole for i in members]
        blocks = Blocks([w.rank for w in whole])
        left, right = (
            torch.cat(rows) for rows in zip(*((w.left, w.right) for w in whole), strict=True)
        )
        values = torch.cat([w.values for w in whole])
        products = (left @ left.t()) * (right @ right.t()) * values[:, None] * values
        sums = blocks.sums(products)
        norms = sums.diagonal().clamp(min=0).sqrt()
        _put(found, members, sums / (norms[:, None] * norms))
    return found


def _of_side(sides: Sequence[_Side]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean squared cosine of the principal angles, and linear CKA."""
    n = len(sides)
    angles, cka = (torch.full((n, n), torch.nan, dtype=torch.float64) for _ in range(2))
    for members in _alike([side.width for side in sides]):
        here = [sides[i] for i in members]
        blocks = Blocks([len(side.values) for side in here])
        rows, values = torch.cat([s.rows for s in here]), torch.cat([s.values for s in here])
        gram = rows @ rows.t()
        ranks = torch.tensor([float(len(side.values)) for side in here], dtype=torch.float64)
        _put(angles, members, blocks.sums(gram.square()) / torch.minimum(ranks[:, None], ranks))
        means = rows.mean(dim=1)
        centred = (gram - rows.shape[1] * means[:, None] * means) * values[:, None] * values
        _put(cka, members, cka_of(blocks.sums(centred.square())))
    return angles, cka


def cka_of(squares: torch.Tensor) -> torch.Tensor:
    """Return linear CKA from ``|X_i^T X_j|^2`` of each two, of centred features."""
    norms = squares.diagonal().sqrt()
    return squares / (norms[:, None] * norms)


class Blocks:
    """Sums over the blocks that modules have in a matrix of all their rows."""

    def __init__(self, ranks: Sequence[int]):
        self._owner = torch.repeat_interleave(torch.arange(len(ranks)), torch.tensor(ranks))
        self._n = len(ranks)

    def sums(self, matrix: torch.Tensor) -> torch.Tensor:
        """Sum a matrix (all rows, all rows) block by block, (n, n) float64."""
        rows = torch.zeros(self._n, matrix.shape[1], dtype=torch.float64)
        rows.index_add_(0, self._owner, matrix.double())
        both = torch.zeros(self._n, self._n, dtype=torch.float64)
        return both.index_add_(1, self._owner, rows)


def _alike(keys: Sequence[object]) -> list[list[int]]:
    found: dict[object, list[int]] = {}
    for i, key in enumerate(keys):
        found.setdefault(key, []).append(i)
    return list(found.values())


def _put(into: torch.Tensor, members: Sequence[int], values: torch.Tensor) -> None:
    index = torch.tensor(members)
    into[index[:, None], index] = values
