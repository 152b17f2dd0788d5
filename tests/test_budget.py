import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bishare_dsl.budget import Candidate, NotFreeError, Solution, solve


def counter(first=0, **steps):
    """A linear count, which remembers the values that it was called with."""

    def count(values):
        count.calls.append(dict(values))
        return first + sum(steps[name] * value for name, value in values.items())

    count.calls = []
    return count


def test_the_proportions_of_the_own_values_win_over_the_nearest():
    count = counter(a=10, b=1)
    own = {"a": 2, "b": 4}
    # 10 * 9 + 10 is exact, and not a to b as 1 to 2.
    assert solve(count, own, 100, 0.1).met == Candidate({"a": 8, "b": 16}, 96)
    # From 99 to 101, 4 and 4.75 times the own values are the nearest to equal.
    assert solve(count, own, 100, 0.01).met == Candidate({"a": 8, "b": 19}, 99)


def test_of_equal_proportions_the_nearest_wins():
    assert solve(counter(r=7), {"r": 8}, 100, 0.1).met == Candidate({"r": 14}, 98)
    assert solve(counter(2, r=7), {"r": 8}, 103, 0.1).met == Candidate({"r": 14}, 100)


def test_linear_counts_are_solved_by_arithmetic():
    count = counter(500, a=4096, b=64, c=3)
    assert solve(count, {"a": 2, "b": 4, "c": 32}, 10_000_000, 0.01).met is not None
    # All ones, one more of each, three points, and the answer.
    assert len(count.calls) == 1 + 3 + 3 + 1


@given(
    steps=st.lists(st.sampled_from([64, 192, 576, 1000, 1024, 4608]), min_size=1, max_size=3),
    own=st.lists(st.sampled_from([1, 2, 4, 8, 16, 32]), min_size=3, max_size=3),
    budget=st.integers(1000, 40_000),
    within=st.sampled_from([0.001, 0.01, 0.05]),
)
def test_no_values_are_better(steps, own, budget, within):
    """Every combination of values, counted."""
    names = [f"p{i}" for i in range(len(steps))]
    own = dict(zip(names, own, strict=False))
    count = counter(100, **dict(zip(names, steps, strict=True)))
    most = [budget * 1.05 // step + 2 for step in steps]
    if math.prod(most) > 100_000:
        return
    ranges = [range(1, int(end) + 1) for end in most]
    every = [dict(zip(names, values, strict=True)) for values in itertools.product(*ranges)]

    def badness(values):
        ratios = [math.log(values[name] / own[name]) for name in names]
        return round(max(ratios) - min(ratios), 6), abs(count(values) - budget)

    solution = solve(count, own, budget, within)
    met = [values for values in every if abs(count(values) - budget) <= within * budget]
    if met:
        assert badness(solution.met.values) == min(map(badness, met))
        assert solution.met.count == count(solution.met.values)
        return
    assert solution.met is None
    counts = [count(values) for values in every]
    below = max((n for n in counts if n <= budget), default=None)
    assert (solution.below and solution.below.count) == below
    assert solution.above.count == min(n for n in counts if n > budget)


def test_without_values_within_the_tolerance_there_are_the_nearest_on_both_sides():
    solution = solve(counter(r=100), {"r": 8}, 550, 0.01)
    assert solution == Solution(None, Candidate({"r": 5}, 500), Candidate({"r": 6}, 600))
    assert solution.candidates == [solution.below, solution.above]
    too_much = solve(counter(1000, r=100), {"r": 8}, 550, 0.01)
    assert too_much.candidates == [Candidate({"r": 1}, 1100)]


def test_counts_that_are_not_linear_are_counted():
    square = solve(lambda v: 10 * v["r"] ** 2, {"r": 4}, 1000, 0.01)
    assert square.met == Candidate({"r": 10}, 1000)
    product = solve(lambda v: 7 * v["a"] * v["b"], {"a": 1, "b": 2}, 1400, 0.01)
    assert product.met == Candidate({"a": 10, "b": 20}, 1400)


def test_a_count_that_is_linear_at_three_points_alone_is_seen():
    def count(values):
        return 10 * values["r"] + (values["r"] > 10)

    assert solve(count, {"r": 8}, 1001, 0.001).met == Candidate({"r": 100}, 1001)


def test_a_count_that_falls_between_neighbours_is_solved():
    """As where a size fits itself to a rank."""
    counts = {1: 100, 2: 98}

    def count(values):
        return counts.get(values["r"], 40 * values["r"])

    assert solve(count, {"r": 4}, 1000, 0.01).met == Candidate({"r": 25}, 1000)


def test_a_count_that_stops_growing_ends_the_search():
    solution = solve(lambda v: 10 * min(v["r"], 40), {"r": 4}, 1000, 0.01)
    assert solution.met is None
    assert solution.below.count == 400


def test_values_without_a_plan_are_too_large():
    def count(values):
        return 10 * values["r"] if values["r"] < 30 else math.inf

    solution = solve(count, {"r": 4}, 1000, 0.01)
    assert solution == Solution(None, Candidate({"r": 29}, 290), None)


@pytest.mark.parametrize(
    ("count", "why"),
    [
        (lambda v: 100 * v["a"], "does not change"),
        (lambda v: 100 * v["a"] + 1000 // v["b"], "fewer"),
        (lambda v: math.inf if v["b"] == 1 else v["a"], "does not fit"),
    ],
)
def test_a_param_that_cannot_meet_a_budget_is_named(count, why):
    with pytest.raises(NotFreeError, match=f"`b`: .*{why}") as error:
        solve(count, {"a": 2, "b": 3}, 1000, 0.01)
    assert error.value.name == "b"
