"""Choose the next run: another learning rate, scored on a task's validation part, or another seed.

A learning rate's score is the mean over its finished seeds, since one seed can be lucky where others
diverge. Later seeds can therefore change the choice.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from sweep.methods import GRID, METHODS
from sweep.results import Job, Results, Row

Found = Mapping[float, Sequence[Row]]
"""By rate, the runs at it."""
Chain = tuple[list[Job], int]
"""The jobs of a series that can start now, and about how many are left of it."""


def rates(results: Results, task: str, method: str) -> Found:
    """Return the runs of a method on a task, of seed 0 first; of rates that have one of seed 0."""
    wanted = task, method, "small", {}
    own = [job for job in results if (job.task, job.method, job.size, job.params) == wanted]
    own.sort(key=lambda job: job.seed)
    return {
        rate: [results[job] for job in own if job.rate == rate]
        for rate in sorted(job.rate for job in own if job.seed == 0)
    }


def score(rows: Sequence[Row]) -> tuple[float, float]:
    """Return what a larger one of is better: validation accuracy, then a lower validation loss."""
    # A run that diverged has no loss.
    losses = [math.inf if r["validation_loss"] is None else r["validation_loss"] for r in rows]
    return statistics.fmean(r["validation_accuracy"] for r in rows), -statistics.fmean(losses)


def best_rate(found: Found) -> float:
    """Return the best of the rates that were tried."""
    return max(found, key=lambda rate: score(found[rate]))


def untried(found: Found, start: float, grid: Sequence[float] = GRID) -> list[float]:
    """Return the rates to try next; none when the best one so far is worse than neither of its neighbours.

    Args:
        start: below the rates at which training breaks down: among those chance decides which is the
            best, and a search that knew no others could end there.

    Raises:
        ValueError: the best one is at the grid's edge.
    """
    if start not in found:
        return [start]
    best = best_rate(found)
    place = grid.index(best)
    if place in (0, len(grid) - 1):
        raise ValueError(f"the best rate, {best:g}, is at the edge of the grid")
    # Up first: the fall is steeper there, and is soon found.
    return [rate for rate in (grid[place + 1], grid[place - 1]) if rate not in found]


def finished(results: Results, task: str) -> dict[str, Sequence[Row]]:
    """Return by method the runs at the chosen rate, of those whose search is over."""
    found = {name: rates(results, task, name) for name in METHODS}
    return {
        name: tried[best_rate(tried)]
        for name, tried in found.items()
        if not untried(tried, METHODS[name].start)
    }


def left(results: Results, *jobs: Job) -> Chain:
    """Return those of some jobs that are not done."""
    missing = [job for job in jobs if job not in results]
    return missing, len(missing)


def search(results: Results, task: str, method: str, seeds: int) -> Chain:
    """Return the chain of a method on a task: a search, then the other seeds at its rate."""
    found = rates(results, task, method)
    tries = untried(found, METHODS[method].start)
    best = best_rate(found) if found else tries[0]
    others = left(results, *(Job(task, method, best, seed) for seed in range(seeds)))
    if not tries:
        return others
    # Around the first rate there will be two neighbours.
    number = others[1] + len(tries) if found else seeds + 2
    return [Job(task, method, rate, 0) for rate in tries], number
