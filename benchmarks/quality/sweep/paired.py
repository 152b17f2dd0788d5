"""Test whether two methods differ, from runs with equal seeds on equal test examples.

A difference of two accuracies depends on the seeds and the examples, which are both considered random. With
S seeds and N examples, the mean of an S by N table of differences has the variance

    V(S) = seeds / S + rows / N + rest / (S N)

whose three parts are estimated by the mean squares of a two-way analysis of variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.stats import t as student

LEVEL = 0.05


@dataclass(frozen=True)
class Gap:
    """How much more often one method is right than another.

    Attributes:
        mean: of the differences, as a part of 1.
        error: its standard error, of drawing seeds and rows; of a single seed, of rows alone.
        freedom: degrees of freedom of the error.
        parts: of the variance, what V(S) has for `seeds`, `rows / N` and `rest / N`.
    """

    mean: float
    error: float
    freedom: float
    parts: tuple[float, float, float]

    @property
    def p(self) -> float:
        """How likely so large a difference is by chance, in either direction."""
        if not self.error:
            return float(not self.mean)
        return float(2 * student.sf(abs(self.mean) / self.error, self.freedom))

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """What holds the true difference but for `level` of cases."""
        half = float(student.isf(level / 2, self.freedom)) * self.error
        return self.mean - half, self.mean + half

    def seeds_needed(self, comparisons: int = 1) -> int | None:
        """How many seeds would tell a difference like this from none; None if only more rows could.

        Args:
            comparisons: among how many the level is divided.
        """
        seeds, rows, rest = self.parts
        wanted = (self.mean / NormalDist().inv_cdf(1 - LEVEL / comparisons / 2)) ** 2
        return math.ceil((seeds + rest) / (wanted - rows)) if wanted > rows else None


def paired(mine: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> Gap:
    """Compare two methods by which rows they are right on.

    Args:
        mine: for each seed, 1 or 0 for each test row.
        theirs: of the other method; the same seeds and rows.
    """
    gaps = np.array(mine, float) - np.array(theirs, float)
    count, width = gaps.shape
    mean, by_row = float(gaps.mean()), gaps.mean(0)
    if count == 1:
        rows = float(gaps.var(ddof=1)) / width
        return Gap(mean, math.sqrt(rows), width - 1, (0, rows, 0))
    by_seed = gaps.mean(1)
    rest = gaps - by_seed[:, None] - by_row + mean
    squares = (
        width * float(by_seed.var(ddof=1)),
        count * float(by_row.var(ddof=1)),
        float((rest**2).sum()) / (count - 1) / (width - 1),
    )
    of_seeds, of_rows, of_rest = squares
    # The difference of noisy squares: never below what either of them alone would give.
    total = max(of_seeds + of_rows - of_rest, of_seeds, of_rows)
    freedom = _freedom(total, squares, (count - 1, width - 1, (count - 1) * (width - 1)))
    parts = (
        max(0.0, of_seeds - of_rest) / width,
        max(0.0, of_rows - of_rest) / count / width,
        of_rest / width,
    )
    return Gap(mean, math.sqrt(total / count / width), freedom, parts)


def average(gaps: Sequence[Gap]) -> Gap:
    """Return the mean of independent differences, such as those of several tasks."""
    count = len(gaps)
    squares = [gap.error**2 for gap in gaps]
    total = math.fsum(squares)
    seeds, rows, rest = (
        math.fsum(part) / count**2 for part in zip(*(g.parts for g in gaps), strict=True)
    )
    return Gap(
        math.fsum(gap.mean for gap in gaps) / count,
        math.sqrt(total) / count,
        _freedom(total, squares, [gap.freedom for gap in gaps]),
        (seeds, rows, rest),
    )


def _freedom(total: float, squares: Sequence[float], degrees: Sequence[float]) -> float:
    """Return Satterthwaite's degrees of freedom of a sum of squares."""
    spread = sum(square**2 / free for square, free in zip(squares, degrees, strict=True))
    return total**2 / spread if spread else 1.0


def holm(values: Sequence[float]) -> list[float]:
    """Probabilities corrected for how many there are (Holm, 1979)."""
    corrected, largest = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, values[place] * (len(values) - rank)))
        corrected[place] = largest
    return corrected
