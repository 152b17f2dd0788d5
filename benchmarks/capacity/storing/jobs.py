"""The runs in order of importance, and choices based on finished runs."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from storing.bases import BASES
from storing.methods import methods, spec_of
from storing.store import Load

STEP = 2.5
"""Between the rates of a search."""
FURTHER = 3
"""The most rates that a search tries beyond its first three, while the best of them is at an edge."""
TUNING, SEEDS = 100, range(5)
"""The seed on which rates are chosen, and the fresh ones."""
LONGER = 5
"""The best so many are trained for twice the steps too."""
LOADS = (1, 2)
"""A cell has so many times the pairs of its budget."""


@dataclass(frozen=True)
class Cell:
    """Runs that are compared with one another."""

    base: str
    task: str
    budget: int
    load: int = 1
    longer: int = 1

    @property
    def pairs(self) -> int:
        """How many there are to store."""
        return BASES[self.base].pairs(self.budget) * self.load

    def work(self) -> Load:
        """Return what a run of it stores, and for how many steps."""
        base = BASES[self.base]
        return Load(base, self.task, self.pairs, base.steps * self.longer)


@dataclass(frozen=True)
class Job:
    """A run: all that its result depends on, but for what a method is at a budget."""

    base: str
    task: str
    budget: int
    load: int
    longer: int
    method: str
    rate: float
    seed: int


Results = Mapping[Job, Mapping[str, Any]]
Pass = list[Job]
"""Jobs of one method in one cell, which run stacked."""


def cells(bases: Sequence[str], tasks: Sequence[str]) -> list[Cell]:
    """Return all cells, those that are worth most first: the primary budget before the others."""
    found = (
        Cell(base, task, budget, load, longer)
        for longer, load in ((1, 1), (2, 1), (1, 2))
        for base in bases
        for task in tasks
        for budget in BASES[base].budgets
    )
    return sorted(found, key=_worth)


def _worth(cell: Cell) -> tuple[int, int, int]:
    place = BASES[cell.base].budgets.index(cell.budget)
    first = cell.base == "random" and cell.task == "one"
    return (
        (cell.longer > 1) + 2 * (cell.load > 1) + (not first) + place,
        cell.base != "random",
        cell.task != "one",
    )


def passes(results: Results, cells: Sequence[Cell], names: Sequence[str]) -> Iterator[Pass]:
    """Yield what can run now: a search's rates, or the fresh seeds at the rate that it has chosen.

    What these find can turn the choice. A rate is chosen at a cell's first load and steps, and kept for its
    second and for twice the steps.
    """
    for cell in cells:
        for name in chosen_for(results, cell, names):
            todo = _next(results, cell, name)
            if todo:
                yield todo


def chosen_for(results: Results, cell: Cell, names: Sequence[str]) -> Sequence[str]:
    """Return the methods that a cell is for: with more steps only those that were best with fewer."""
    if cell.longer == 1:
        return names
    short = Cell(cell.base, cell.task, cell.budget, cell.load)
    if any(_next(results, short, name) for name in names):
        return []  # Who is best is not known yet.
    ranked = sorted(
        finished(results, short, names).items(),
        key=lambda one: -statistics.fmean(map(density, one[1])),
    )
    return [name for name, _ in ranked[:LONGER]]


def _next(results: Results, cell: Cell, name: str) -> Pass:
    if name not in methods(cell.base) or spec_of(cell.base, name, cell.budget) is None:
        return []
    plain = Cell(cell.base, cell.task, cell.budget)
    tries = untried(tuned(results, plain, name), methods(cell.base)[name].start)
    if tries:
        return [_job(plain, name, rate, TUNING) for rate in tries]
    rate = best_rate(tuned(results, plain, name))
    jobs = [_job(cell, name, rate, seed) for seed in SEEDS]
    return [job for job in jobs if job not in results]


def _job(cell: Cell, name: str, rate: float, seed: int) -> Job:
    return Job(**asdict(cell), method=name, rate=rate, seed=seed)


def tuned(results: Results, cell: Cell, name: str) -> dict[float, float]:
    """Return by rate the bits that it has stored, in the mean over the seeds that ran.

    So a rate that one seed was lucky with gives way to the next best one.
    """
    found: dict[float, list[float]] = {}
    for job, row in results.items():
        if job == _job(cell, name, job.rate, job.seed):
            bits = row["bits"]
            found.setdefault(job.rate, []).append(float("-inf") if bits is None else bits)
    return {rate: statistics.fmean(bits) for rate, bits in found.items()}


def best_rate(found: Mapping[float, float]) -> float:
    """Return the rate that stored most."""
    return max(found, key=lambda rate: found[rate])


def untried(found: Mapping[float, float], start: float) -> list[float]:
    """Return the rates that a search tries next: three, then one beyond the best while it is at an edge."""
    if not found:
        return [_rounded(start / STEP), start, _rounded(start * STEP)]
    best = best_rate(found)
    if len(found) >= 3 + FURTHER or best not in (min(found), max(found)):
        return []
    return [_rounded(best / STEP if best == min(found) else best * STEP)]


def _rounded(rate: float) -> float:
    return float(f"{rate:.4g}")


def finished(
    results: Results, cell: Cell, names: Sequence[str]
) -> dict[str, list[Mapping[str, Any]]]:
    """Return by method the runs of a cell's fresh seeds, of those that have all of them."""
    plain, found = Cell(cell.base, cell.task, cell.budget), {}
    for name in names:
        tries = tuned(results, plain, name)
        if tries:
            jobs = [_job(cell, name, best_rate(tries), seed) for seed in SEEDS]
            rows = [results[job] for job in jobs if job in results]
            if len(rows) == len(SEEDS):
                found[name] = rows
    return found


def density(row: Mapping[str, Any]) -> float:
    """Return the bits that a trained parameter stores; what diverged stores none."""
    return max(0.0, row["bits"] or 0.0) / row["parameters"]
