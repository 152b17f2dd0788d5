"""Which run comes next: of a learning rate's search by a task's validation part, or another seed at its rate.

A rate's score is the mean over the seeds that ran: one seed can be lucky at a rate where others diverge, so
that what the other seeds find can still turn the choice.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from sweep.methods import GRID, METHODS
from sweep.results import Job, Results

Found = Mapping[float, Sequence[Mapping[str, Any]]]
"""By rate, the runs at it."""


def rates(results: Results, task: str, method: str, size: str) -> Found:
    """The runs of a method on a task, of seed 0 first; of rates that have one of seed 0."""
    own = [
        row
        for row in results.rows.values()
        if (row["task"], row["method"], row["size"], row["params"]) == (task, method, size, {})
    ]
    own.sort(key=lambda row: row["seed"])
    found = {rate: [row for row in own if row["rate"] == rate] for rate in GRID}
    return {rate: rows for rate, rows in found.items() if rows and rows[0]["seed"] == 0}


def score(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """What a larger one of is better: validation accuracy, then a lower validation loss."""
    # A run that diverged has no loss.
    losses = [
        math.inf if row["validation_loss"] is None else row["validation_loss"] for row in rows
    ]
    return statistics.fmean(row["validation_accuracy"] for row in rows), -statistics.fmean(losses)


def best_rate(found: Found) -> float:
    """The best of the rates that were tried."""
    return max(found, key=lambda rate: score(found[rate]))


def untried(found: Found, start: float, grid: Sequence[float] = GRID) -> list[float]:
    """The rates to try next; none when the best one so far is worse than neither of its neighbours.

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


def chosen(results: Results, task: str, method: str, size: str) -> float | None:
    """The rate of a search that is over, or None."""
    found = rates(results, task, method, size)
    return None if untried(found, METHODS[method].start) else best_rate(found)


def open_jobs(
    results: Results, task: str, method: str, size: str, seeds: int
) -> tuple[list[Job], int]:
    """The jobs of a method on a task that can start now, and about how many are left.

    Those are the search's, or the other seeds at its rate.
    """
    found = rates(results, task, method, size)
    tries = untried(found, METHODS[method].start)
    best = best_rate(found) if found else tries[0]
    at_best = [Job(task, method, best, seed, size) for seed in range(seeds)]
    left = [job for job in at_best if results.get(job) is None]
    if not tries:
        return left, len(left)
    # Around the first rate there will be two neighbours.
    number = len(left) + len(tries) if found else seeds + 2
    return [Job(task, method, rate, 0, size) for rate in tries], number
