"""A difference is as sure as its seeds and its rows together."""

import math

import numpy as np
import pytest
from sweep.paired import Gap, average, holm, paired


def draws(rng, seeds, rows, sides=(0.8, 0.8), spread=0.0):
    """Of two methods, which rows each seed is right on; a seed moves the accuracy of its method."""
    return [
        (rng.random((seeds, rows)) < side + spread * rng.standard_normal((seeds, 1))).astype(int)
        for side in sides
    ]


@pytest.mark.parametrize("spread", [0, 0.03])
def test_two_methods_that_are_alike_are_seldom_told_apart(spread):
    rng = np.random.default_rng(0)
    gaps = [paired(*draws(rng, 6, 300, spread=spread)) for _ in range(400)]
    assert sum(gap.p < 0.05 for gap in gaps) / 400 < 0.07
    covered = sum(low <= 0 <= high for low, high in (gap.interval() for gap in gaps))
    assert covered / 400 > 0.93


def test_a_difference_that_is_there_is_found():
    gap = paired(*draws(np.random.default_rng(1), 8, 600, (0.85, 0.78)))
    low, high = gap.interval()
    assert gap.p < 0.001
    assert low < 0.07 < high
    assert gap.seeds_needed() <= 8


def test_with_one_seed_only_the_rows_count():
    gap = paired([[1, 1, 0, 1]], [[1, 0, 0, 1]])
    assert (gap.mean, gap.error) == (0.25, pytest.approx(0.25))
    assert gap.freedom == 3


def test_the_parts_add_up_to_the_square_of_the_error():
    rng = np.random.default_rng(2)
    mine, theirs = draws(rng, 5, 200, spread=0.1)
    gap = paired(mine, theirs)
    seeds, rows, rest = gap.parts
    assert rows >= 0
    if rows and seeds:
        assert gap.error**2 == pytest.approx((seeds + rest) / 5 + rows)


def test_the_mean_of_tasks_is_surer_than_each_of_them():
    rng = np.random.default_rng(3)
    gaps = [paired(*draws(rng, 6, 300, (0.8, 0.78), 0.02)) for _ in range(3)]
    gap = average(gaps)
    assert gap.mean == pytest.approx(np.mean([g.mean for g in gaps]))
    assert gap.error == pytest.approx(np.sqrt(sum(g.error**2 for g in gaps)) / 3)
    assert max(g.freedom for g in gaps) < gap.freedom < sum(g.freedom for g in gaps) + 1e-9
    assert average(gaps[:1]).interval() == pytest.approx(gaps[0].interval())


def test_the_interval_of_a_mean_of_tasks_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(300):
        gap = average([paired(*draws(rng, 4, 200, spread=0.03)) for _ in range(2)])
        low, high = gap.interval()
        covered += low <= 0 <= high
    assert covered / 300 > 0.93


def test_how_many_seeds_would_do_it():
    few = Gap(0.02, 0.02, 4, parts=(0.0004, 0.00001, 0.0))
    assert few.seeds_needed() == math.ceil(0.0004 / ((0.02 / 1.959964) ** 2 - 0.00001))
    assert few.seeds_needed(7) > few.seeds_needed()
    assert Gap(0.01, 0.02, 4, parts=(0.0, 0.001, 0.0)).seeds_needed() is None


def test_nothing_differs_from_itself():
    gap = paired([[1, 0, 1], [1, 1, 1]], [[1, 0, 1], [1, 1, 1]])
    assert (gap.mean, gap.error, gap.p) == (0, 0, 1)


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.5]) == [1, 1]
    assert holm([]) == []
