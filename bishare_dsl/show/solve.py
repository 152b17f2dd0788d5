"""The largest value of a param that keeps a count within a budget."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

LIMIT = 1 << 20
"""No larger value is tried."""
_NEAR = 32
"""After so many values in a row that are not possible none is looked for."""

Counted = tuple[int, int]
"""A value and its count."""


class Solution(NamedTuple):
    """``found`` is the largest whole number whose count is within the budget; None where there is none.

    ``after`` is the next value that is possible. ``grows`` is whether every count that was looked at is at
    least that of the value below: else there may be a larger value.
    """

    found: Counted | None
    after: Counted | None
    grows: bool


def largest(count: Callable[[int], int | None], budget: int) -> Solution:
    """Find the largest whole number, from 0 to `LIMIT`, whose count is at most the budget.

    ``count`` is None for a value that is not possible, and grows with the value.
    """
    seen: dict[int, int | None] = {}

    def possible(value: int) -> Counted | None:
        """Return the first value from this one on that is possible."""
        for near in range(value, value + _NEAR):
            if near not in seen:
                seen[near] = count(near)
            if (size := seen[near]) is not None:
                return near, size
        return None

    for power in range(LIMIT.bit_length()):  # To see whether counts grow.
        possible(1 << power)
    found, after, step = None, possible(0), LIMIT
    if after is not None and after[1] <= budget:
        found = after
        while step:
            more = possible(found[0] + step)
            if more is not None and more[1] <= budget and more[0] <= LIMIT:
                found = more
            else:
                step //= 2
        after = possible(found[0] + 1)
    counts = [size for _, size in sorted(seen.items()) if size is not None]
    return Solution(found, after, all(one <= other for one, other in pairwise(counts)))
