"""What is said of specs from the records of their runs: a learning rate, a score and a paired difference."""

from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import pytest
from scipy import stats

from bishare_dsl.diagnostics import BishareError
from bishare_dsl.train.comparison import Estimate, compare
from bishare_dsl.train.finished import ACCURACY, LOSS, FinishedRun

CONDITIONS = {"data": "d", "base": "b", "batch": "8", "steps": "3"}


def run(spec, rate, seed, choosing, judging, **more):
    """A run whose folder has a name like that of a cell."""
    name = f"{spec},learning_rate={rate:g},seed={seed}"
    given = {"parameters": 100, "measure": ACCURACY, "conditions": CONDITIONS, **more}
    return FinishedRun(
        folder=Path(name),
        spec=spec,
        rate=rate,
        seed=seed,
        choosing=choosing,
        judging=judging,
        **given,
    )


@pytest.mark.parametrize("count", [2, 3, 5, 11, 12, 20, 60])
def test_an_interval_is_that_of_student(count):
    values = [float(n * n % 7) for n in range(count)]
    half = stats.t.ppf(0.975, count - 1) * stdev(values) / count**0.5
    assert Estimate.of(values) == Estimate(mean(values), pytest.approx(half, rel=2e-3))
    assert Estimate.of([3.0]) == Estimate(3.0, None)


def test_one_half_of_the_rows_chooses_and_the_other_judges():
    runs = [
        *(run("a", 0.1, seed, choosing=60, judging=50 + seed) for seed in (0, 1)),
        *(run("a", 0.2, seed, choosing=59, judging=99) for seed in (0, 1)),
        *(run("b", 0.1, seed, choosing=50, judging=45 + 3 * seed) for seed in (0, 1)),
    ]
    first, second = compare(runs).rows
    assert (first.spec, first.rate, first.score.mean, first.difference) == ("a", 0.1, 50.5, None)
    assert first.is_edge
    assert not second.is_edge  # It has a single rate.
    # Over equal seeds: 45 - 50 and 48 - 51.
    assert second.difference == Estimate.of([-5, -3])
    assert compare(runs, first="b").rows[1].difference == Estimate.of([5, 3])


def test_less_loss_is_better():
    runs = [run(spec, 0.1, seed, loss, loss + seed / 9, measure=LOSS)
            for spec, loss in (("a", 2.0), ("b", 1.0)) for seed in (0, 1)]  # fmt: skip
    comparison = compare(runs)
    assert [row.spec for row in comparison.rows] == ["b", "a"]
    assert "beside b, over equal seeds: a is behind" in " ".join(comparison.notes)


def test_a_rate_at_which_a_seed_is_missing_is_not_chosen():
    runs = [
        *(run("a", 0.1, seed, choosing=50, judging=50) for seed in (0, 1, 2)),
        *(run("a", 0.2, seed, choosing=90, judging=90) for seed in (0, 1)),
        run("a", 0.2, 2, None, None, diverged="the gradient of step 2 is nan"),
    ]
    comparison = compare(runs)
    assert (comparison.rows[0].rate, comparison.rows[0].seeds) == (0.1, (0, 1, 2))
    notes = "\n".join(comparison.notes)
    assert "a: a seed is missing at 0.2" in notes
    assert "a,learning_rate=0.2,seed=2 diverged: the gradient of step 2 is nan" in notes
    # As long as it is to run: the same, with the reason alone missing.
    assert compare(runs[:-1]).rows[0].rate == 0.1


def test_a_seed_that_an_interrupted_grid_has_begun_does_not_count():
    runs = [run("a", rate, seed, 50 + rate, 50) for rate in (1, 2, 3) for seed in (0, 1)]
    comparison = compare([*runs, run("a", 1, 2, 99, 99)])
    assert (comparison.rows[0].rate, comparison.rows[0].seeds) == (3, (0, 1))
    assert "a: seed 2 does not count" in "\n".join(comparison.notes)


@pytest.mark.parametrize("name", CONDITIONS)
def test_runs_of_other_conditions_are_named_and_left_out(name):
    runs = [run(spec, 0.1, seed, 50, 50) for spec in "ab" for seed in (0, 1)]
    other = replace(run("c", 0.1, 0, 99, 99), conditions={**CONDITIONS, name: "other"})
    comparison = compare([other, *runs])
    assert [row.spec for row in comparison.rows] == ["a", "b"]
    assert f"c,learning_rate=0.1,seed=0 is not compared: its {name} differ" in "\n".join(
        comparison.notes
    )


def test_the_conclusion_says_what_cannot_be_told_apart():
    def notes(gaps):
        runs = [run("a", 0.1, seed, 60, 50.0) for seed in range(3)]
        runs += [run("b", 0.1, seed, 50, 50 + gap) for seed, gap in enumerate(gaps)]
        return "\n".join(compare(runs).notes)

    assert "none can be told apart (1 comparison" in notes([1, -1, 0.5])
    assert "b is behind (1 comparison" in notes([-5, -6, -5.5])
    assert "have no interval" in notes([-5])


def test_what_cannot_be_compared():
    with pytest.raises(BishareError, match=r"(?s)BS911.*--eval_data"):
        compare([run("a", 0.1, 0, None, None)])
    with pytest.raises(BishareError, match="BS911"):
        compare([])
    with pytest.raises(BishareError, match=r"(?s)BS911.*no spec `lor`.*`lora`"):
        compare([run("lora", 0.1, 0, 50, 50)], first="lor")
