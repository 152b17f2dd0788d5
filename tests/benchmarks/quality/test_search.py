"""The search of a learning rate ends where both neighbours are worse, and the other seeds follow."""

import json
import math

import pytest
from sweep.methods import ABLATIONS, GRID, METHODS, Method, counts
from sweep.results import Job, Results
from sweep.search import chosen, next_rate, open_jobs

TINY = (1.0, 2.0, 3.0, 4.0, 5.0)


def found(**accuracies):
    return {
        float(rate[1:]): {"validation_accuracy": accuracy, "validation_loss": loss}
        for rate, (accuracy, loss) in accuracies.items()
    }


def walk(accuracy, start):
    """The rates that a search tries, in order."""
    tried = {}
    while (rate := next_rate(tried, start, TINY)) is not None:
        tried[rate] = {"validation_accuracy": accuracy[rate], "validation_loss": 1.0}
    return list(tried)


def test_it_goes_towards_the_best():
    assert walk({1: 0.1, 2: 0.9, 3: 0.8, 4: 0.7}, 3) == [3, 4, 2, 1]
    assert walk({2: 0.5, 3: 0.8, 4: 0.9, 5: 0.1}, 3) == [3, 4, 5]


def test_ties_go_to_the_lower_loss():
    assert next_rate(found(r2=(0.5, 1.0), r3=(0.5, 0.9), r4=(0.4, 0.1)), 3.0, TINY) is None
    assert next_rate(found(r2=(0.5, 0.9), r3=(0.5, 1.0), r4=(0.4, 0.1)), 3.0, TINY) == 1.0


def test_a_run_that_diverged_is_the_worst_of_equals():
    assert next_rate(found(r2=(0.5, None), r3=(0.5, 1.0), r4=(0.5, None)), 3.0, TINY) is None


def test_the_edge_is_an_error():
    with pytest.raises(ValueError, match="edge"):
        next_rate(found(r4=(0.5, 1.0), r5=(0.9, 1.0)), 4.0, TINY)


def measured(accuracy):
    return {"validation_accuracy": accuracy, "validation_loss": 1.0, "test_accuracy": accuracy}


def test_the_other_seeds_start_when_the_search_is_over(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    start = METHODS["ss"].start
    place = GRID.index(start)
    for rate, accuracy in ((start, 0.8), (GRID[place + 1], 0.7), (GRID[place - 1], 0.6)):
        assert chosen(results, "boolq", "ss", "small") is None
        (job,) = open_jobs(results, "boolq", "ss", "small", range(3))
        assert job == Job("boolq", "ss", rate, 0)
        results.add(job, measured(accuracy))
    assert chosen(results, "boolq", "ss", "small") == start
    jobs = list(open_jobs(results, "boolq", "ss", "small", range(3)))
    assert jobs == [Job("boolq", "ss", start, seed) for seed in (1, 2)]


def test_an_ablation_is_no_part_of_the_search(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    start = METHODS["ss"].start
    results.add(Job("boolq", "ss", start, 0, params={"slice": "leading"}), measured(0.9))
    assert next(open_jobs(results, "boolq", "ss", "small", range(3))) == Job(
        "boolq", "ss", start, 0
    )


def test_what_is_done_is_done_after_a_restart_and_a_torn_line_is_not(tmp_path):
    path = tmp_path / "results.jsonl"
    job, other = Job("boolq", "ss", 1e-3, 0), Job("boolq", "ss", 1e-3, 1, params={"r_intra": 4})
    Results(path).add(job, {**measured(0.5), "test_loss": math.nan})
    with path.open("a") as file:
        file.write('{"task": "boolq", "method"')
    results = Results(path)
    assert results.get(job)["test_loss"] is None
    assert results.get(other) is None
    results.add(other, measured(0.6))
    again = Results(path)
    assert again.rows == results.rows
    assert again.get(other)["test_accuracy"] == 0.6
    assert json.loads(path.read_text().splitlines()[-1])["params"] == {"r_intra": 4}


def test_every_method_and_ablation_can_be_planned():
    from bishare_dsl import plan_spec

    assert counts("llama-7b")["lora"] == 14_024_704
    for variants in ABLATIONS.values():
        for name, params in variants:
            method = METHODS[name]
            assert plan_spec(method.spec, "llama-7b", params={**method.params, **params}).trainable


def test_a_method_over_its_budget_is_an_error(monkeypatch):
    big = Method("ss", "SS", "bishare_ss", {"r_local": 8}, bishare=True)
    monkeypatch.setitem(METHODS, "ss", big)
    with pytest.raises(ValueError, match=r"ss has .*% of LoRA's parameters, more than 44\.59%"):
        counts("llama-7b")
