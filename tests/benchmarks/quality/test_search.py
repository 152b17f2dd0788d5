"""The search of a learning rate ends where neither neighbour is better, and the other seeds follow."""

import json
import math

import pytest
from sweep.methods import ABLATIONS, GRID, METHODS, Method, counts
from sweep.results import Job, Results
from sweep.search import best_rate, chosen, open_jobs, untried
from sweep.tasks import TASKS

TINY = (1.0, 2.0, 3.0, 4.0, 5.0)


def measured(accuracy, loss=1.0):
    return {"validation_accuracy": accuracy, "validation_loss": loss, "test_accuracy": accuracy}


def found(accuracies):
    """By rate, runs of these accuracies over seeds."""
    return {float(rate): [measured(a) for a in seeds] for rate, seeds in accuracies.items()}


def walk(accuracy, start=3.0):
    """The rates that a search tries, in order."""
    tried = {}
    while tries := untried(found(tried), start, TINY):
        tried[tries[0]] = [accuracy[tries[0]]]
    return list(tried)


def test_it_goes_towards_the_best():
    assert walk({1: 0.1, 2: 0.9, 3: 0.8, 4: 0.7}) == [3, 4, 2, 1]
    assert walk({2: 0.5, 3: 0.8, 4: 0.9, 5: 0.1}) == [3, 4, 5]


def test_what_other_seeds_find_can_turn_the_choice():
    assert best_rate(found({2: [0.79], 3: [0.8], 4: [0.5]})) == 3
    turned = found({2: [0.79], 3: [0.8, 0.6], 4: [0.5]})
    assert best_rate(turned) == 2
    assert untried(turned, 3.0, TINY) == [1]


def test_ties_go_to_the_lower_loss():
    tied = {2.0: [measured(0.5, 0.9)], 3.0: [measured(0.5, 1.0)], 4.0: [measured(0.4, 0.1)]}
    assert best_rate(tied) == 2


def test_a_run_that_diverged_is_the_worst_of_equals():
    tied = {2.0: [measured(0.5, None)], 3.0: [measured(0.5)], 4.0: [measured(0.5, None)]}
    assert untried(tied, 3.0, TINY) == []
    assert best_rate(tied) == 3


def test_a_search_does_not_end_where_all_rates_are_too_high():
    too_high = found({3: [0.3], 4: [0.4], 5: [0.3]})
    assert untried(too_high, 2.0, TINY) == [2]


def test_the_edge_is_an_error():
    with pytest.raises(ValueError, match="edge"):
        untried(found({4: [0.5], 5: [0.9]}), 4.0, TINY)


def test_the_other_seeds_start_when_the_search_is_over(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    start = METHODS["ss"].start
    place = GRID.index(start)
    for jobs, left, accuracy in (
        ([(start, 0)], 5, 0.8),
        ([(GRID[place + 1], 0), (GRID[place - 1], 0)], 4, 0.7),
        ([(start, 1), (start, 2)], 2, 0.8),
        ([], 0, 0),
    ):
        assert open_jobs(results, "boolq", "ss", "small", 3) == (
            [Job("boolq", "ss", rate, seed) for rate, seed in jobs],
            left,
        )
        assert chosen(results, "boolq", "ss", "small") == (start if left <= 2 else None)
        for rate, seed in jobs:
            results.add(Job("boolq", "ss", rate, seed), measured(accuracy))


def test_an_ablation_is_no_part_of_the_search(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    start = METHODS["ss"].start
    results.add(Job("boolq", "ss", start, 0, params={"slice": "leading"}), measured(0.9))
    assert open_jobs(results, "boolq", "ss", "small", 3)[0] == [Job("boolq", "ss", start, 0)]


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
    assert again.get(other)["validation_accuracy"] == 0.6
    assert json.loads(path.read_text().splitlines()[-1])["params"] == {"r_intra": 4}


def test_a_run_of_another_number_of_steps_does_not_count(tmp_path):
    path = tmp_path / "results.jsonl"
    steps = TASKS["boolq"].sizes["small"].steps
    now, before = Job("boolq", "ss", 1e-3, 0), Job("boolq", "ss", 1e-3, 1)
    Results(path).add(now, {**measured(0.5), "steps": steps})
    Results(path).add(before, {**measured(0.5), "steps": steps - 1})
    assert list(Results(path).rows) == [now.key]


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
