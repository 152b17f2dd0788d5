"""Which run comes next: a learning rate by the validation part, then the other seeds at it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sweep.methods import GRID, METHODS
from sweep.results import Job, Results


def better(row: Mapping[str, Any]) -> tuple[float, float]:
    """What a larger one of is better: validation accuracy, then a lower validation loss."""
    loss = row["validation_loss"]
    return row["validation_accuracy"], -(math.inf if loss is None else loss)


def best_rate(found: Mapping[float, Mapping[str, Any]]) -> float:
    """The best of the rates that were tried."""
    return max(found, key=lambda rate: better(found[rate]))


def next_rate(
    found: Mapping[float, Mapping[str, Any]], start: float, grid: Sequence[float] = GRID
) -> float | None:
    """The rate to try next; None when the best one so far is worse than neither of its neighbours.

    Raises:
        ValueError: the best one is at the grid's edge.
    """
    if not found:
        return start
    best = best_rate(found)
    place = grid.index(best)
    if place in (0, len(grid) - 1):
        raise ValueError(f"the best rate, {best:g}, is at the edge of the grid")
    # Up first: the fall is steeper there, and is soon found.
    for neighbour in (grid[place + 1], grid[place - 1]):
        if neighbour not in found:
            return neighbour
    return None


def rates(results: Results, task: str, method: str, size: str) -> dict[float, dict[str, Any]]:
    """What seed 0 gave at each rate that was tried."""
    rows = {rate: results.get(Job(task, method, rate, 0, size)) for rate in GRID}
    return {rate: row for rate, row in rows.items() if row is not None}


def chosen(results: Results, task: str, method: str, size: str) -> float | None:
    """The rate of a search that is over, or None."""
    found = rates(results, task, method, size)
    if next_rate(found, METHODS[method].start) is not None:
        return None
    return best_rate(found)


def open_jobs(
    results: Results, task: str, method: str, size: str, seeds: Sequence[int]
) -> Iterator[Job]:
    """The jobs of a task and method that can start now: the search's next, or those of the other seeds."""
    step = next_rate(rates(results, task, method, size), METHODS[method].start)
    if step is not None:
        yield Job(task, method, step, 0, size)
        return
    best = best_rate(rates(results, task, method, size))
    for seed in seeds:
        job = Job(task, method, best, seed, size)
        if results.get(job) is None:
            yield job
