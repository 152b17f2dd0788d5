"""Does a law say what a topology stores? ``bits = C P^a n^-b``, with P trained parameters and n pairs.

C is a topology's own, a and b are common to a group. Each topology is held out: a and b come from the others,
C from its runs at the primary budget, and what it stores in each other cell is predicted.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from storing.bases import BASES
from storing.jobs import LOADS, Cell, Results, density, finished
from storing.methods import methods


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
    """Fit a group, each topology held out in turn."""
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
