"""The best common factors of some updates, and what is left of the updates behind them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bishare_dsl.analyse.propose.candidates import Role
from bishare_dsl.analyse.update import Factored

_DIRECT = 700
"""Up to how many rows eigenvectors are worked out directly."""
_NOTHING = 1e-6
"""The part of the most energy below which a direction is what float32 makes of inner products."""
_MORE, _ROUNDS = 8, 6
_KEPT = 32
"""The most ranks of what is left that are looked at further."""


@dataclass(frozen=True)
class CommonFactors:
    """Common factors of a pool.

    Attributes:
        gains: the energy that each further rank keeps, as long as the ranks before it.
        left: directions of the output, (count, widest), for a B or a pair; else empty.
        right: directions of the input, for an A or a pair; else empty.
        amounts: of a pair, what its directions are multiplied by.
    """

    gains: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor
    amounts: torch.Tensor


_NONE = torch.empty(0)


def find_common(updates: Sequence[Factored], role: Role, count: int) -> CommonFactors:
    """Find the common factors that keep most.

    Args:
        updates: of the pool.
        role: what is common.
        count: of ranks.
    """
    if role == "pair":
        return _pair(updates, count)
    sides = [u.right if role == "A" else u.left for u in updates]
    rows = torch.cat([u.values[:, None] * side for u, side in zip(updates, sides, strict=True)])
    if len(updates) == 1:
        directions = sides[0][:count]
        gains = updates[0].values[:count].double().square()
    else:
        gains, directions = _directions(rows, count)
    return CommonFactors(
        gains,
        directions if role == "B" else _NONE,
        directions if role == "A" else _NONE,
        _NONE,
    )


def remove_common(
    update: Factored, found: CommonFactors, role: Role, count: int, alone: bool
) -> Factored:
    """Take from an update what the first common factors keep of it.

    Args:
        update: of the pool.
        found: its common factors.
        role: what is common.
        count: how many of the factors.
        alone: whether the update is the pool's only one.
    """
    if alone and role != "pair":
        return Factored(update.values[count:], update.left[count:], update.right[count:])
    down, up = update.values[:, None] * update.right, update.left
    if role == "A":
        basis = found.right[:count]
        return Factored.of(down - (down @ basis.t()) @ basis, up)
    if role == "B":
        basis = found.left[:count]
        up = update.values[:, None] * update.left
        return Factored.of(update.right, up - (up @ basis.t()) @ basis)
    left = _window(found.left[:count], update.left.shape[1])
    right = _window(found.right[:count], update.right.shape[1])
    rest = Factored.of(
        torch.cat([down, -found.amounts[:count, None] * right]), torch.cat([up, left])
    )
    return Factored(rest.values[:_KEPT], rest.left[:_KEPT], rest.right[:_KEPT])


def _directions(rows: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest squared singular values of a matrix, and its right singular vectors."""
    count = min(count, *rows.shape)
    if min(rows.shape) > _DIRECT:
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


def _pair(updates: Sequence[Factored], count: int) -> CommonFactors:
    """Find a pair by the sum of all updates, each in the middle of the widest: slices of it are their pairs.

    A direction ``u v^T`` of the sum, at the length that suits the updates best, keeps
    ``<sum, u v^T>^2 / sum |u_i|^2 |v_i|^2`` of them, ``u_i`` and ``v_i`` being a module's slices.
    """
    widths = Counter((u.left.shape[1], u.right.shape[1]) for u in updates)
    wide_out, wide_in = (max(both) for both in zip(*widths, strict=True))
    left = torch.cat([_padded(u.values[:, None] * u.left, wide_out) for u in updates])
    right = torch.cat([_padded(u.right, wide_in) for u in updates])
    total = _largest(left, right, count) if len(left) > _DIRECT else _product(left, right, count)
    us, vs, values = total.left, total.right, total.values
    shares = torch.zeros(len(values), dtype=torch.float64)
    for (of_out, of_in), modules in widths.items():
        of_left = _window(us, of_out).double().square().sum(dim=1)
        of_right = _window(vs, of_in).double().square().sum(dim=1)
        shares += modules * of_left * of_right
    shares = shares.clamp(min=1e-12)
    return CommonFactors(
        values.double().square() / shares, us, vs, (values.double() / shares).float()
    )


def _product(left: torch.Tensor, right: torch.Tensor, count: int) -> Factored:
    """Give the strongest directions of ``left^T right``, of few rows, by the inner products of the rows."""
    lengths, turn = torch.linalg.eigh((left @ left.t()).double())
    kept = lengths > float(lengths[-1]) * _NOTHING
    lengths, turn = lengths[kept].sqrt(), turn[:, kept]
    # In orthonormal coordinates of the outputs the matrix is `rows^T right`.
    rows = turn * lengths
    energies, vectors = torch.linalg.eigh(rows.t() @ (right @ right.t()).double() @ rows)
    energies, vectors = energies.flip(0)[:count], vectors.flip(1)[:, :count]
    kept = energies > float(energies[:1].sum()) * _NOTHING
    values, vectors = energies[kept].sqrt(), vectors[:, kept]
    return Factored(
        values.float(),
        (turn / lengths @ vectors).float().t() @ left,
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
    before = (width - rows.shape[1]) // 2
    return torch.nn.functional.pad(rows, (before, width - rows.shape[1] - before))


def _window(rows: torch.Tensor, width: int) -> torch.Tensor:
    """Cut out what a module of this width uses: the middle, as slices do."""
    start = (rows.shape[1] - width) // 2
    return rows[:, start : start + width]
