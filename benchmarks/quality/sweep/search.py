"""Which run comes next: of a learning rate's search, or at the rate that it chose.

A method has one rate for all tasks. It is chosen on the validation parts of those that a model of this size
learns much of: one part alone is small, and what suits one task can be too much for another. A rate's score
is the mean over tasks of the mean over the seeds that ran: one seed can be lucky at a rate where others
diverge, so that what the other seeds find can still turn the choice.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sweep.data import TASKS
from sweep.methods import GRID, METHODS
from sweep.results import Job, Results, estimate, gaps

SEARCHED = ("headlines", "social_iqa")
# In standard errors of the difference: a neighbour so far behind on its first tasks is not tried on the rest.
BEHIND = 2.0
Found = Mapping[float, Mapping[str, Sequence[Mapping[str, Any]]]]


def rates(results: Results, method: str, size: str) -> Found:
    """By rate and task, the rows of a method's runs, of seed 0 first; of rates and tasks that have one."""
    found: dict[float, dict[str, list[dict[str, Any]]]] = {}
    own = [
        row
        for row in results.rows.values()
        if row["method"] == method and row["size"] == size and not row["params"]
    ]
    for rate in GRID:
        for task in TASKS:
            rows = [row for row in own if row["rate"] == rate and row["task"] == task]
            rows.sort(key=lambda row: row["seed"])
            if rows and rows[0]["seed"] == 0:
                found.setdefault(rate, {})[task] = rows
    return found


def score(tasks: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[float, float]:
    """What a larger one of is better: validation accuracy, then a lower validation loss."""

    def mean(name: str) -> float:
        return statistics.fmean(
            statistics.fmean(math.inf if row[name] is None else row[name] for row in rows)
            for rows in tasks.values()
        )

    return mean("validation_accuracy"), -mean("validation_loss")


class Search:
    """Where the search of a method's rate stands.

    Args:
        found: what ran so far.
        start: the rate that is tried first.
        tasks: whose validation parts decide.

    Raises:
        ValueError: the best rate is at the grid's edge.
    """

    def __init__(
        self,
        found: Found,
        start: float,
        tasks: Collection[str] = SEARCHED,
        grid: Sequence[float] = GRID,
    ) -> None:
        self.found = {
            rate: {task: rows for task, rows in tried.items() if task in tasks}
            for rate, tried in found.items()
        }
        self.tasks = tasks
        complete = {rate for rate, tried in self.found.items() if len(tried) == len(tasks)}
        self.best = max(complete, key=lambda rate: score(self.found[rate]), default=start)
        place = grid.index(self.best)
        if place in (0, len(grid) - 1):
            raise ValueError(f"the best rate, {self.best:g}, is at the edge of the grid")
        # Up first: the fall is steeper there, and is soon found.
        self.neighbours = (grid[place + 1], grid[place - 1])

    def _missing(self, rate: float) -> list[str]:
        return [task for task in self.tasks if task not in self.found.get(rate, {})]

    def _behind(self, rate: float) -> bool:
        """Whether a rate is so much worse than the best, on the same rows, that it need not go on."""
        tried, best = self.found.get(rate, {}), self.found[self.best]
        if not tried:
            return False
        gap, error = estimate(
            [gap for task in tried for gap in gaps(tried[task], best[task], "validation")]
        )
        return gap < -BEHIND * error

    def open(self) -> dict[float, list[str]]:
        """By rate, the tasks that seed 0 has still to try, so far as known; none when the search is over."""
        if missing := self._missing(self.best):
            return {self.best: missing}
        return {
            rate: missing
            for rate in self.neighbours
            if (missing := self._missing(rate)) and not self._behind(rate)
        }

    @property
    def chosen(self) -> float | None:
        """The best rate, once neither neighbour is better; or None."""
        return None if self.open() else self.best


def search(results: Results, method: str, size: str) -> Search:
    """Where the search of a method stands by the results file."""
    return Search(rates(results, method, size), METHODS[method].start)


def open_jobs(results: Results, method: str, size: str, seeds: int) -> tuple[list[Job], int]:
    """The jobs of a method that can start now, and about how many are left of it.

    Those are the search's; then the other seeds at its rate, which can turn it; then the other tasks. A
    neighbour's tasks come one after another, for it may fall behind.
    """
    found = search(results, method, size)

    def left(tasks: Collection[str]) -> list[Job]:
        jobs = [
            Job(task, method, found.best, seed, size) for seed in range(seeds) for task in tasks
        ]
        return [job for job in jobs if results.get(job) is None]

    searched, others = left(SEARCHED), left([task for task in TASKS if task not in SEARCHED])
    number = len(searched) + len(others)
    tries = found.open()
    if not tries:
        return searched or others, number
    if found.best in tries:
        return searched[: len(SEARCHED)], number + 2 * len(SEARCHED)
    first = [Job(tasks[0], method, rate, 0, size) for rate, tasks in tries.items()]
    return first, number + sum(map(len, tries.values()))
