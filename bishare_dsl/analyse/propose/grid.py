"""A common A for each column of a grid of modules, and a common B for each of its rows.

Where each place of the grid has as many modules, the best of rank k are the singular vectors of the matrix
whose blocks are the sums of the updates at each place. Where places are empty they are not, but what each of
them keeps by itself is told rightly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bishare_dsl.analyse.propose.common import DIRECT, NOTHING, coordinates, directions, without
from bishare_dsl.analyse.update import Factored


class _Side:
    """Rows of modules, in coordinates of the row or column of the grid that each module is in.

    Args:
        rows: (rank, width) of each module.
        of: the row or column of each.
    """

    def __init__(self, rows: Sequence[torch.Tensor], of: Sequence[int]):
        self.of = of
        self._stacks: dict[int, torch.Tensor] = {}
        self._turns: dict[int, torch.Tensor | None] = {}
        self.coordinates = [torch.empty(0)] * len(rows)
        self.starts, self.length = {}, 0
        for group in dict.fromkeys(of):
            here = [i for i, g in enumerate(of) if g == group]
            stack = torch.cat([rows[i] for i in here])
            found = turned = None
            if len(stack) <= min(DIRECT, stack.shape[1]):
                found, turned = (part.float() for part in coordinates(stack))
            self._stacks[group], self._turns[group] = stack, turned
            parts = (stack if found is None else found).split([len(rows[i]) for i in here])
            for i, part in zip(here, parts, strict=True):
                self.coordinates[i] = part
            self.starts[group] = self.length
            self.length += parts[0].shape[1]

    def place(self, i: int) -> slice:
        """Return where the coordinates of a module stand among those of all."""
        start = self.starts[self.of[i]]
        return slice(start, start + self.coordinates[i].shape[1])

    def vectors(self, i: int, found: torch.Tensor) -> torch.Tensor:
        """Return directions (count, coordinates) as rows (count, width) of a module."""
        turn, here = self._turns[self.of[i]], found[:, self.place(i)]
        return here if turn is None else here @ turn.t() @ self._stacks[self.of[i]]


@dataclass(frozen=True)
class Grid:
    """Common factors of a grid: directions in the coordinates of its sides, and their amounts."""

    gains: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor
    amounts: torch.Tensor
    out: _Side
    into: _Side

    def rest(self, place: int, update: Factored, count: int) -> Factored:
        """Return what is left of an update."""
        down = self.amounts[:count, None] * self.into.vectors(place, self.right[:count])
        return without(update, down, self.out.vectors(place, self.left[:count]))


def find_grid(updates: Sequence[Factored], places: Sequence[tuple[int, int]], count: int) -> Grid:
    """Find the common factors that keep most.

    Args:
        updates: of the modules.
        places: the A and the B of each.
        count: of ranks.
    """
    into = _Side([u.right for u in updates], [a for a, _ in places])
    out = _Side([u.values[:, None] * u.left for u in updates], [b for _, b in places])
    sums = torch.zeros(out.length, into.length)
    for i in range(len(updates)):
        sums[out.place(i), into.place(i)] += out.coordinates[i].t() @ into.coordinates[i]
    energies, right = directions(sums, count)
    some = energies > float(energies[:1].sum()) * NOTHING
    values, right = energies[some].sqrt(), right[some]
    left = ((sums @ right.t()) / values.float()).t()
    shares = torch.zeros(len(values), dtype=torch.float64)
    for i in range(len(updates)):
        of_left = left[:, out.place(i)].double().square().sum(dim=1)
        shares += of_left * right[:, into.place(i)].double().square().sum(dim=1)
    shares = shares.clamp(min=1e-12)
    return Grid(values.square() / shares, left, right, (values / shares).float(), out, into)
