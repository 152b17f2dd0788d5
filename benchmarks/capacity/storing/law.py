"""Test a capacity law for topologies: ``bits = C P^a n^-b``, with P trained parameters and n pairs.

C belongs to a topology; a and b belong to a group. Each topology is held out: a and b are fitted to the
others, C to its runs at the primary budget, and its other cells are predicted.

This does not predict which topology stores more. Comparing a pool with a diagonal per module with LoRA on
the same modules, LoRA's rank per module does: ``pool / LoRA - 1 = g - s log2 rank``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from storing import placing
from storing.bases import BASES
from storing.jobs import LOADS, Cell, Results, density, finished
from storing.methods import FIVE, architecture, methods


class Point(NamedTuple):
    """What a method stores in a cell: logarithms of bits, of parameters, of pairs."""

    bits: float
    parameters: float
    pairs: float


class Law(NamedTuple):
    """The exponents of a group, and how well they predict a topology that they have not seen.

    Attributes:
        a: of the parameters.
        b: of the pairs.
        error: the median of ``|predicted / found - 1|``.
        count: of predictions.
        loads: whether the pairs a parameter ever differed, so that a and b are told apart.
    """

    a: float
    b: float
    error: float
    count: int
    loads: bool


def points(results: Results, base: str, task: str) -> dict[str, list[Point]]:
    """Return by method what it stores, at the primary budget and the first load first."""
    found: dict[str, list[Point]] = {}
    names = [name for name in methods(base) if name != "gate"]
    for load in LOADS:
        for budget in BASES[base].budgets:
            cell = Cell(base, task, budget, load)
            for name, rows in finished(results, cell, names).items():
                bits = statistics.fmean(density(row) * row["parameters"] for row in rows)
                if bits > 0:
                    point = Point(
                        math.log(bits), math.log(rows[0]["parameters"]), math.log(cell.pairs)
                    )
                    found.setdefault(name, []).append(point)
    return found


def fit(found: Mapping[str, Sequence[Point]]) -> tuple[float, float]:
    """Return a and b, by least squares of what changes from a topology's first point."""
    moves = [
        (p.parameters - rest[0].parameters, rest[0].pairs - p.pairs, p.bits - rest[0].bits)
        for rest in found.values()
        for p in rest[1:]
    ]
    table = np.array(moves)
    if not _told_apart(found):
        # The pairs of a budget are a multiple of it: b is then part of a.
        return float(np.linalg.lstsq(table[:, :1], table[:, 2], rcond=None)[0][0]), 0.0
    a, b = np.linalg.lstsq(table[:, :2], table[:, 2], rcond=None)[0]
    return float(a), float(b)


def law(found: Mapping[str, Sequence[Point]]) -> Law:
    """Fit a group, leaving out one topology at a time."""
    errors = []
    for name, own in found.items():
        others = {other: rest for other, rest in found.items() if other != name}
        a, b = fit(others)
        first = own[0]
        for p in own[1:]:
            said = first.bits + a * (p.parameters - first.parameters) - b * (p.pairs - first.pairs)
            errors.append(abs(math.exp(said - p.bits) - 1))
    return Law(*fit(found), statistics.median(errors), len(errors), _told_apart(found))


def _told_apart(found: Mapping[str, Sequence[Point]]) -> bool:
    """Tell whether the pairs a parameter differ by more than how near topologies are to a budget."""
    loads = [p.pairs - p.parameters for rest in found.values() for p in rest]
    return max(loads) - min(loads) > math.log(1.5)


POOLS = {
    "pool_up": ("lora_up", ("up_proj",)),
    "pool_gate_up": ("lora_gate_up", ("gate_proj", "up_proj")),
    "pool_down": ("lora_down", ("down_proj",)),
    "pool_five": ("lora", FIVE),
}
"""Of a pool, the LoRA on the same modules, and their kinds."""


class Gain(NamedTuple):
    """What a pool stores more than LoRA on the same modules, as a part, and the rank that LoRA has there."""

    rank: float
    gain: float


class Border(NamedTuple):
    """The decay of the gain of pools as the rank grows.

    Attributes:
        at_one: the gain at rank 1.
        doubling: what it loses with each doubling of the rank.
        error: held out, the median of ``|predicted - found|``.
    """

    at_one: float
    doubling: float
    error: float

    @property
    def rank(self) -> float:
        """Return the rank at which nothing is gained."""
        return float(2 ** (self.at_one / self.doubling))


def gains(results: Results, base: str, task: str) -> list[Gain]:
    """Return what pools gain at each budget."""
    found = []
    for budget in sorted(BASES[base].budgets):
        for pool, (plain, kinds) in POOLS.items():
            both = finished(results, Cell(base, task, budget), (pool, plain))
            if len(both) == 2:
                mine, theirs = (statistics.fmean(map(density, both[n])) for n in (pool, plain))
                one = sum(s.d_in + s.d_out for s in placing.sites(architecture(base), kinds))
                found.append(Gain(both[plain][0]["parameters"] / one, mine / theirs - 1))
    return found


def border(found: Sequence[Gain]) -> Border:
    """Fit the decay of the gains, leaving out one at a time."""

    def line(known: Sequence[Gain]) -> tuple[float, float]:
        slope, start = np.polyfit([math.log2(g.rank) for g in known], [g.gain for g in known], 1)
        return float(start), float(slope)

    errors = []
    for one in found:
        start, slope = line([other for other in found if other is not one])
        errors.append(abs(start + slope * math.log2(one.rank) - one.gain))
    start, slope = line(found)
    return Border(start, -slope, statistics.median(errors))
