"""What remains of evidence while shares are chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bishare_dsl.analyse.propose.candidates import Unit
from bishare_dsl.analyse.propose.common import Common, OneFactor, Pair
from bishare_dsl.analyse.propose.evidence import Updates
from bishare_dsl.analyse.propose.grid import find_grid
from bishare_dsl.analyse.propose.kernels import find_kernels
from bishare_dsl.analyse.update import Factored


class Residual:
    """Updates, and what is taken from them. Energies are means over the sets, of 1 at the start."""

    def __init__(self, sets: Sequence[Updates]):
        self._sets = [dict(updates) for updates in sets]

    def gains(self, unit: Unit, count: int) -> list[float]:
        """Return the energy that 0, 1, … ``count`` ranks of a unit would keep."""
        ranks = [0.0] * (count + 1)
        for updates in self._sets:
            for pool in range(len(unit.pools)):
                found = _common(updates, unit, pool, count)
                for i, gain in enumerate([] if found is None else found.gains.tolist(), 1):
                    ranks[i] += gain / len(self._sets)
        for i in range(1, count + 1):
            ranks[i] += ranks[i - 1]
        return ranks

    def spend(self, unit: Unit, count: int) -> float:
        """Take away what ``count`` ranks of a unit keep; return the energy that this was."""
        before = self.energy()
        for updates in self._sets:
            for pool, paths in enumerate(unit.pools):
                if found := _common(updates, unit, pool, count):
                    for place, path in enumerate(_here(updates, paths)):
                        updates[path] = found.rest(place, updates[path], count)
        return before - self.energy()

    def energy(self) -> float:
        """Return the energy that is left."""
        return sum(u.energy for updates in self._sets for u in updates.values()) / len(self._sets)


def _here(updates: Mapping[str, Factored], pool: Sequence[str]) -> list[str]:
    return [path for path in pool if path in updates and updates[path].rank]


def _common(updates: Updates, unit: Unit, pool: int, count: int) -> Common | None:
    """Return the common factors of a pool; None where there is nothing that they could keep."""
    paths, candidate = _here(updates, unit.pools[pool]), unit.candidate
    here = [updates[path] for path in paths]
    if not here:
        return None
    if candidate.role == "grid":
        place = dict(zip(unit.pools[pool], unit.places[pool], strict=True))
        return find_grid(here, [place[path] for path in paths], count)
    if candidate.role == "kernels":
        return find_kernels(here, candidate.size, candidate.many, count)
    if candidate.role == "pair":
        return Pair(here, count)
    return OneFactor(here, candidate.role, count)
