"""The best common factors of some updates, and what is left of the updates behind them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch

from bishare_dsl.analyse.propose.candidates import Role
from bishare_dsl.analyse.update import Factored

DIRECT = 700
"""Up to how many rows eigenvectors are worked out directly."""
NOTHING = 1e-6
"""The part of the most energy below which a direction is what float32 makes of inner products."""
_MORE, _ROUNDS = 8, 6
_KEPT = 32
"""The most ranks of what is left that are looked at further."""


class Common(Protocol):
    """Common factors of a pool."""

    @property
    def gains(self) -> torch.Tensor:
        """Return the energy that each further rank keeps, as long as the ranks before it."""

    def rest(self, place: int, update: Factored, count: int) -> Factored:
        """Return what the first ``count`` ranks leave of an update, which has this place in the pool."""


@dataclass(frozen=True)
class OneFactor:
    """The common A or B that keeps most.

    Attributes:
        updates: of the pool.
        role: what is common.
        count: of ranks.
    """

    updates: Sequence[Factored]
    role: Role
    count: int

    @property
    def gains(self) -> torch.Tensor:
        """Return what each rank keeps."""
        if len(self.updates) == 1:
            return self.updates[0].values[: self.count].double().square()
        return energies(self._rows(), self.count)

    def rest(self, place: int, update: Factored, count: int) -> Factored:
        """Return what is left of an update."""
        if len(self.updates) == 1:
            return Factored(update.values[count:], update.left[count:], update.right[count:])
        basis = self._basis[:count]
        if self.role == "A":
            down = update.values[:, None] * update.right
            return Factored.of(down - (down @ basis.t()) @ basis, update.left)
        up = update.values[:, None] * update.left
        return Factored.of(update.right, up - (up @ basis.t()) @ basis)

    @cached_property
    def _basis(self) -> torch.Tensor:
        return directions(self._rows(), self.count)[1]

    def _rows(self) -> torch.Tensor:
        sides = [u.right if self.role == "A" else u.left for u in self.updates]
        both = zip(self.updates, sides, strict=True)
        return torch.cat([u.values[:, None] * side for u, side in both])


@dataclass(frozen=True)
class Pair:
    """The common pair that keeps most, by the sum of all updates, each in the middle of the widest: slices
    of it are their pairs.

    A direction ``u v^T`` of the sum, at the length that suits the updates best, keeps
    ``<sum, u v^T>^2 / sum |u_i|^2 |v_i|^2`` of them, ``u_i`` and ``v_i`` being a module's slices.
    """

    updates: Sequence[Factored]
    count: int

    @property
    def gains(self) -> torch.Tensor:
        """Return what each rank keeps."""
        if len(self._widths) == 1 and len(left := self._left) <= DIRECT:
            squares: torch.Tensor = torch.linalg.eigvalsh(_turned(left, self._right)[2])
            return squares.flip(0)[: self.count].clamp(min=0) / len(self.updates)
        total, shares = self._found
        gains: torch.Tensor = total.values.double().square() / shares
        return gains

    def rest(self, place: int, update: Factored, count: int) -> Factored:
        """Return what is left of an update."""
        total, shares = self._found
        amounts = (total.values.double() / shares).float()[:count, None]
        right = amounts * _window(total.right[:count], update.right.shape[1])
        return without(update, right, _window(total.left[:count], update.left.shape[1]))

    @cached_property
    def _found(self) -> tuple[Factored, torch.Tensor]:
        left, right = self._left, self._right
        total = (_largest if len(left) > DIRECT else _product)(left, right, self.count)
        shares = torch.zeros(len(total.values), dtype=torch.float64)
        for (of_out, of_in), modules in self._widths.items():
            of_left = _window(total.left, of_out).double().square().sum(dim=1)
            of_right = _window(total.right, of_in).double().square().sum(dim=1)
            shares += modules * of_left * of_right
        return total, shares.clamp(min=1e-12)

    @cached_property
    def _widths(self) -> Counter[tuple[int, int]]:
        return Counter((u.left.shape[1], u.right.shape[1]) for u in self.updates)

    @property
    def _left(self) -> torch.Tensor:
        widest = max(width for width, _ in self._widths)
        return torch.cat([_padded(u.values[:, None] * u.left, widest) for u in self.updates])

    @property
    def _right(self) -> torch.Tensor:
        widest = max(width for _, width in self._widths)
        return torch.cat([_padded(u.right, widest) for u in self.updates])


def without(update: Factored, down: torch.Tensor, up: torch.Tensor) -> Factored:
    """Subtract ``up^T down`` from an update."""
    rest = Factored.of(
        torch.cat([update.values[:, None] * update.right, -down]), torch.cat([update.left, up])
    )
    return Factored(rest.values[:_KEPT], rest.left[:_KEPT], rest.right[:_KEPT])


def energies(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Return the largest squared singular values of a matrix."""
    if min(rows.shape) > DIRECT:
        return directions(rows, count)[0]
    gram = rows.t() @ rows if rows.shape[0] > rows.shape[1] else rows @ rows.t()
    values: torch.Tensor = torch.linalg.eigvalsh(gram.double())
    return values.flip(0)[:count].clamp(min=0)


def directions(rows: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest squared singular values of a matrix, and its right singular vectors."""
    count = min(count, *rows.shape)
    if min(rows.shape) > DIRECT:
        basis = _iterated(rows, count)
        small = rows @ basis
        values, vectors = torch.linalg.eigh((small.t() @ small).double())
        order = values.flip(0)[:count], vectors.flip(1)[:, :count]
        return order[0].clamp(min=0), order[1].float().t() @ basis.t()
    if rows.shape[0] > rows.shape[1]:
        values, vectors = torch.linalg.eigh((rows.t() @ rows).double())
        return values.flip(0)[:count].clamp(min=0), vectors.flip(1)[:, :count].float().t()
    values, vectors = torch.linalg.eigh((rows @ rows.t()).double())
    values, vectors = values.flip(0)[:count].clamp(min=0), vectors.flip(1)[:, :count].float()
    # A direction of no energy is none.
    scale = values.clamp(min=float(values[:1].sum()) * 1e-12 or 1.0).rsqrt().float()
    return values, scale[:, None] * (vectors.t() @ rows)


def _iterated(rows: torch.Tensor, count: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    basis = torch.randn(rows.shape[1], min(rows.shape[1], count + _MORE), generator=random)
    for _ in range(_ROUNDS):
        basis = torch.linalg.qr(rows.t() @ (rows @ basis)).Q
    return basis


def coordinates(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows, of which there are few, in orthonormal coordinates, strongest last, in float64.

    Returns:
        ``found`` and ``turn``: ``rows`` is ``found turn^T rows``, and ``turn^T rows`` is orthonormal.
    """
    lengths, vectors = torch.linalg.eigh((rows @ rows.t()).double())
    some = lengths > float(lengths[-1]) * NOTHING
    lengths, vectors = lengths[some].sqrt(), vectors[:, some]
    return vectors * lengths, vectors / lengths


def _turned(
    left: torch.Tensor, right: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return orthonormal coordinates of the outputs, by inner products of rows.

    Returns:
        ``rows`` and ``turn``: in coordinates ``turn^T left`` the matrix ``M = left^T right`` is
        ``rows^T right``; and its ``M M^T``.
    """
    rows, turn = coordinates(left)
    return rows, turn, rows.t() @ (right @ right.t()).double() @ rows


def _product(left: torch.Tensor, right: torch.Tensor, count: int) -> Factored:
    """Return the strongest directions of ``left^T right``, of few rows."""
    rows, turn, square = _turned(left, right)
    found, vectors = torch.linalg.eigh(square)
    found, vectors = found.flip(0)[:count], vectors.flip(1)[:, :count]
    kept = found > float(found[:1].sum()) * NOTHING
    values, vectors = found[kept].sqrt(), vectors[:, kept]
    return Factored(
        values.float(),
        (turn @ vectors).float().t() @ left,
        (rows @ vectors / values).float().t() @ right,
    )


def _largest(left: torch.Tensor, right: torch.Tensor, count: int) -> Factored:
    """Return the strongest directions of ``left^T right``, by subspace iteration."""
    random = torch.Generator().manual_seed(0)
    size = min(left.shape[1], right.shape[1], count + _MORE)
    out = torch.randn(left.shape[1], size, generator=random)
    basis = right.t() @ (left @ out)
    for _ in range(_ROUNDS):
        out = torch.linalg.qr(left.t() @ (right @ basis)).Q
        basis = torch.linalg.qr(right.t() @ (left @ out)).Q
    small_left, values, small_right = torch.linalg.svd((left @ out).t() @ (right @ basis))
    left, values, right = (out @ small_left).t(), values, (basis @ small_right.t()).t()
    return Factored(values[:count], left[:count], right[:count])


def _padded(rows: torch.Tensor, width: int) -> torch.Tensor:
    if rows.shape[1] == width:
        return rows
    before = (width - rows.shape[1]) // 2
    return torch.nn.functional.pad(rows, (before, width - rows.shape[1] - before))


def _window(rows: torch.Tensor, width: int) -> torch.Tensor:
    """Cut out what a module of this width uses: the middle, as slices do."""
    start = (rows.shape[1] - width) // 2
    return rows[:, start : start + width]
