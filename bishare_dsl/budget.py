"""Find the params with which a spec trains a given number of parameters, from counts alone.

Of all whole values whose count is within the tolerance, those win that keep the proportions of the spec's
own values best, and of these the nearest to the budget. The nearest alone would take odd shapes for a
hundredth of a percent: the tolerance buys the shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Values = Mapping[str, int]
Counter = Callable[[Values], float]

_LARGEST = 1 << 24
"""No value beyond this is tried."""
_FAR = 64
"""A value far from 1, to see whether a param has an effect that 2 does not show."""
_EQUAL = 1e-6
"""Spreads that differ by less are equal."""


@dataclass(frozen=True)
class Candidate:
    """Values of the free params, and how many parameters a plan with them trains."""

    values: dict[str, int]
    count: float


@dataclass(frozen=True)
class Solution:
    """The values that meet a budget, or None, and the nearest ones on both sides that were counted."""

    met: Candidate | None
    below: Candidate | None
    above: Candidate | None

    @property
    def candidates(self) -> list[Candidate]:
        """The values that meet the budget; without any, the nearest below and above it."""
        if self.met is not None:
            return [self.met]
        return [end for end in (self.below, self.above) if end is not None]


class NotFreeError(ValueError):
    """A param that cannot meet a budget: ``name``, and ``why``."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"`{name}`: {why}")
        self.name = name
        self.why = why


def solve(count: Counter, own: Values, budget: int, within: float) -> Solution:
    """Find the values of free params that meet a budget.

    The spread of values is ``max log(value / own value) - min log(value / own value)`` over the params; least
    spread wins, then the least distance from the budget. If counts at three points are linear in the values,
    the values are found by arithmetic and counted once; otherwise everything tried is counted.

    Args:
        count: the number of trained parameters for given values, infinity where no plan is possible. It
            should not fall as a value grows: otherwise some values are not seen.
        own: the values that the spec has for the free params.
        budget: the number of parameters to meet.
        within: the fraction of the budget by which a count may differ.

    Raises:
        NotFreeError: a param does not change the count, or lowers it.
    """
    ones = dict.fromkeys(own, 1)
    first = count(ones)
    if first == math.inf:
        raise NotFreeError(_unfit(count, own), "the spec does not fit the model with the value 1")
    steps: dict[str, float] = {}
    for name in own:
        step = count({**ones, name: 2}) - first
        if step <= 0:
            # A size that depends on a rank may let a count fall between two neighbours.
            far = count({**ones, name: _FAR})
            if far == first:
                raise NotFreeError(
                    name, "its value does not change how many parameters are trained"
                )
            if far < first or far == math.inf:
                raise NotFreeError(name, "a larger value trains fewer parameters")
            step = (far - first) / (_FAR - 1)
        steps[name] = step
    if first > budget * (1 + within):
        return Solution(met=None, below=None, above=Candidate(ones, first))
    # Few values of what costs most, and for each of them a search of what costs least.
    names = sorted(own, key=lambda name: -steps[name])

    def linear(values: Values) -> float:
        return first + sum(steps[name] * (value - 1) for name, value in values.items())

    probes = [dict.fromkeys(own, 3), dict.fromkeys(own, 5), {n: max(own[n], 1) for n in own}]
    if all(count(probe) == linear(probe) for probe in probes):
        solution = _Search(linear, own, names, budget, within).run()
        if all(one.count == count(one.values) for one in solution.candidates):
            return solution
    return _Search(count, own, names, budget, within).run()


def _unfit(count: Counter, own: Values) -> str:
    """Return the param that does not fit at 1 while the others have their own values."""
    for name in own:
        if count({**own, name: 1}) == math.inf:
            return name
    return next(iter(own))


class _Search:
    """A search of whole values, param after param, from proportional values outwards.

    Once values are known that meet the budget, only those that keep the proportions as well are visited.
    """

    def __init__(
        self, count: Counter, own: Values, names: Sequence[str], budget: int, within: float
    ) -> None:
        self._count = count
        self._own = {name: max(own[name], 1) for name in names}
        self._names = names
        self._budget = budget
        self._least = math.ceil(budget * (1 - within))
        self._most = math.floor(budget * (1 + within))
        self._spread = math.inf
        self._distance = math.inf
        self._met: Candidate | None = None
        self._below: Candidate | None = None
        self._above: Candidate | None = None

    def run(self) -> Solution:
        """Return what was found."""
        self._scale = self._proportional_scale()
        self._visit({}, self._names)
        return Solution(self._met, self._below, self._above)

    def _proportional_scale(self) -> float:
        """Return about the largest factor of the spec's own values that stays within the budget."""
        low = 0.0
        high = 1.0
        while self._count(self._scaled(high)) <= self._budget and high < _LARGEST:
            low = high
            high = 2 * high
        while high - low > 0.01 * high and self._own_changes(low, high):
            middle = (low + high) / 2
            if self._count(self._scaled(middle)) <= self._budget:
                low = middle
            else:
                high = middle
        return high

    def _own_changes(self, low: float, high: float) -> bool:
        return self._scaled(low) != self._scaled(high)

    def _scaled(self, scale: float) -> dict[str, int]:
        return {name: max(1, round(scale * value)) for name, value in self._own.items()}

    def _visit(self, fixed: Values, names: Sequence[str]) -> None:
        """Visit the values of the first of ``names``, and for each one those of the others."""
        name, *rest = names
        if not rest:
            self._solve_last(fixed, name)
            return
        largest = 1 + self._largest_within(fixed, names, self._most)
        centre = min(largest, max(1, round(self._scale * self._own[name])))
        for value in range(centre, largest + 1):
            values = {**fixed, name: value}
            if self._too_large(values, name, rest):
                break
            if not self._too_small(values, name, rest):
                self._visit(values, rest)
        for value in range(centre - 1, 0, -1):
            values = {**fixed, name: value}
            if self._too_small(values, name, rest):
                break
            if not self._too_large(values, name, rest):
                self._visit(values, rest)

    def _too_large(self, values: Values, name: str, rest: Sequence[str]) -> bool:
        """Return whether no values of the others come down to the budget with a spread as small as known."""
        ratios = self._ratios(values)
        if ratios[name] - min(ratios.values()) > self._spread + _EQUAL:
            return True
        floor = max(ratios.values()) - self._spread - _EQUAL
        others = {other: max(1, math.ceil(self._own[other] * math.exp(floor))) for other in rest}
        smallest = {**values, **others}
        if self._met is None:
            self._consider(smallest)
        return self._count(smallest) > self._most

    def _too_small(self, values: Values, name: str, rest: Sequence[str]) -> bool:
        """Return whether no values of the others come up to the budget with a spread as small as known."""
        if self._met is None:
            return False
        ratios = self._ratios(values)
        if max(ratios.values()) - ratios[name] > self._spread + _EQUAL:
            return True
        ceiling = min(ratios.values()) + self._spread + _EQUAL
        others = {other: max(1, math.floor(self._own[other] * math.exp(ceiling))) for other in rest}
        return self._count({**values, **others}) < self._least

    def _solve_last(self, fixed: Values, name: str) -> None:
        """Consider the values of the last param that can be the answer.

        The spread is least between the smallest and the largest ratio of the other params, and grows outside.
        """
        nearest = self._largest_within(fixed, [name], self._budget)
        largest = self._largest_within(fixed, [name], self._most)
        smallest = 1 + self._largest_within(fixed, [name], self._least - 1)
        choices = {nearest, nearest + 1}
        ratios = self._ratios(fixed).values()
        for ratio in (min(ratios, default=0.0), max(ratios, default=0.0)):
            proportional = self._own[name] * math.exp(ratio)
            for value in (math.floor(proportional), math.ceil(proportional)):
                choices.add(min(max(value, smallest), largest))
        for value in choices:
            if value > 0:
                self._consider({**fixed, name: value})

    def _largest_within(self, fixed: Values, names: Sequence[str], limit: int) -> int:
        """Return the largest value of the first of ``names`` whose count is in a limit, 0 if 1 is too large.

        The params after it have the value 1. If a doubled value trains as many, it is not doubled further.
        """
        name, *rest = names
        others = {**fixed, **dict.fromkeys(rest, 1)}
        low = 0
        high = 1
        last = math.nan
        count = self._count({**others, name: high})
        while count <= limit and count != last and high < _LARGEST:
            low = high
            high = 2 * high
            last = count
            count = self._count({**others, name: high})
        if count <= limit:
            return low
        while high - low > 1:
            middle = (low + high) // 2
            if self._count({**others, name: middle}) <= limit:
                low = middle
            else:
                high = middle
        return low

    def _consider(self, values: Values) -> None:
        """Keep values that are the best so far, or the nearest to the budget from below or above."""
        candidate = Candidate(dict(values), self._count(values))
        count = candidate.count
        if count <= self._budget and (self._below is None or count > self._below.count):
            self._below = candidate
        if self._budget < count < math.inf and (self._above is None or count < self._above.count):
            self._above = candidate
        if not self._least <= count <= self._most:
            return
        ratios = self._ratios(values).values()
        spread = max(ratios) - min(ratios)
        distance = abs(count - self._budget)
        nearer = distance < self._distance and spread < self._spread + _EQUAL
        if spread < self._spread - _EQUAL or nearer:
            self._met = candidate
            self._spread = spread
            self._distance = distance

    def _ratios(self, values: Values) -> dict[str, float]:
        """Return the logarithm of each value relative to the spec's own one."""
        return {name: math.log(value / self._own[name]) for name, value in values.items()}
