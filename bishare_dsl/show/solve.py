"""The largest value of a param that keeps a count within a budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

LIMIT = 1 << 20
"""No larger value is tried."""
SCANNED = 2048
"""As many values are tried one by one where counts do not grow with the value."""
_NEAR = 16


@dataclass(frozen=True)
class Solution:
    """The largest whole ``value`` whose count is within the budget.

    ``after`` is the next value that is possible, with its count; None where there was none to find.
    ``grows`` is whether every count that was looked at is at least that of the value below. Where it is not,
    ``sure`` is whether all larger values were tried that could be within the budget.
    """

    value: int
    count: int
    after: tuple[int, int] | None
    grows: bool
    sure: bool


@dataclass(frozen=True)
class NoSolution:
    """No value is within the budget. ``least`` is the least count found and its value, if any."""

    least: tuple[int, int] | None


def largest(count: Callable[[int], int | None], budget: float) -> Solution | NoSolution:
    """Find the largest whole number, 0 or more, whose count is at most the budget.

    ``count`` is None for a value that is not possible. Counts are expected to grow: the powers of two tell
    between which of them the answer is, bisection finds it, and the values above it are tried to see that
    it is the last. Where they do not grow there, or one is not possible, the values between are tried one by
    one.
    """
    seen: dict[int, int | None] = {}

    def within(value: int) -> bool:
        if value not in seen:
            seen[value] = count(value)
        found = seen[value]
        return found is not None and found <= budget

    powers = [0, *(1 << i for i in range(LIMIT.bit_length()))]
    low = max(filter(within, powers), default=None)
    if low is None:
        least = _least(seen)
        if least is None:
            return NoSolution(None)
        # The least count may lie between two of them.
        low, high = least[0] // 2, 2 * least[0] + 1
    else:
        over = [value for value in powers if value > low and seen[value] is not None]
        high = over[0] if over else LIMIT
        found, above = low, high
        while above - found > 1:
            middle = (found + above) // 2
            found, above = (middle, above) if within(middle) else (found, middle)
        last = not any(within(value) for value in range(found + 1, min(found + _NEAR, high)))
        possible = all(seen[value] is not None for value in seen if low <= value <= high)
        if last and possible and _grows({value: seen[value] for value in seen if value >= low}):
            return _solution(seen, found, sure=_grows(seen))
    top = min(high, low + SCANNED)
    for value in range(top, low - 1, -1):
        if within(value):
            return _solution(seen, value, sure=top == high)
    return NoSolution(_least(seen))


def _solution(seen: dict[int, int | None], value: int, *, sure: bool) -> Solution:
    count = seen[value]
    assert count is not None
    above = [(v, size) for v, size in sorted(seen.items()) if v > value and size is not None]
    return Solution(value, count, above[0] if above else None, _grows(seen), sure)


def _grows(seen: dict[int, int | None]) -> bool:
    counts = [size for _, size in sorted(seen.items()) if size is not None]
    return all(one <= other for one, other in pairwise(counts))


def _least(seen: dict[int, int | None]) -> tuple[int, int] | None:
    possible = [(size, value) for value, size in seen.items() if size is not None]
    return min(possible)[::-1] if possible else None
