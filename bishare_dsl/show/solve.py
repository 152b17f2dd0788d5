"""Find the largest value of a param that keeps a count within a budget."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

LIMIT = 1 << 20
"""The largest value to try."""
_MOST_IMPOSSIBLE = 32
"""Give up after this many consecutive impossible values."""

Counted = tuple[int, int]
"""A value and its count."""


class Solution(NamedTuple):
    """The result of a search.

    ``best`` is the largest whole number whose count is within the budget, or None. ``after`` is the next
    possible value. ``grows`` says whether every computed count is at least the count of the value below it;
    otherwise a larger value may fit.
    """

    best: Counted | None
    after: Counted | None
    grows: bool


def largest(count: Callable[[int], int | None], budget: int) -> Solution:
    """Find the largest whole number, from 0 to `LIMIT`, whose count is at most the budget.

    ``count`` returns None for an impossible value, and otherwise grows with the value.
    """
    seen: dict[int, int | None] = {}

    def possible(value: int) -> Counted | None:
        """Return the first possible value from ``value`` on."""
        for near in range(value, value + _MOST_IMPOSSIBLE):
            if near not in seen:
                seen[near] = count(near)
            if (size := seen[near]) is not None:
                return near, size
        return None

    for power in range(LIMIT.bit_length()):  # Check that counts grow.
        possible(1 << power)
    best, after, step = None, possible(0), LIMIT
    if after is not None and after[1] <= budget:
        best = after
        while step:
            more = possible(best[0] + step)
            if more is not None and more[1] <= budget and more[0] <= LIMIT:
                best = more
            else:
                step //= 2
        after = possible(best[0] + 1)
    counts = [size for _, size in sorted(seen.items()) if size is not None]
    return Solution(best, after, all(one <= other for one, other in pairwise(counts)))
