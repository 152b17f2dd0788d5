"""The search of a learning rate ends where neither neighbour is better, and the other seeds follow."""

import json
import math

import pytest
from sweep.methods import ABLATIONS, GRID, METHODS, Method, counts
from sweep.results import Job, Results
from sweep.search import Search, open_jobs, search
from sweep.training import bitmask

TINY = (1.0, 2.0, 3.0, 4.0, 5.0)
TASKS = ("one", "two")
ROWS = 100


def measured(accuracy, seed=0, loss=1.0):
    """A run that is right on the first rows."""
    hits = round(accuracy * ROWS)
    return {
        "seed": seed,
        "validation_accuracy": accuracy,
        "validation_loss": loss,
        "validation_right": bitmask([True] * hits + [False] * (ROWS - hits)),
        "validation_rows": ROWS,
    }


def standing(found, start=3.0):
    """A search on two tasks after what was found: by rate, each task's accuracies over seeds."""
    rows = {
        rate: {
            task: [measured(accuracy, seed) for seed, accuracy in enumerate(seeds)]
            for task, seeds in zip(TASKS, tasks, strict=False)
        }
        for rate, tasks in found.items()
    }
    return Search(rows, start, TASKS, TINY)


def walk(accuracy, start=3.0):
    """The rates and tasks that a search tries, in order, where all tasks and seeds agree."""
    tried = []
    found = {}
    while tries := standing(found, start).open():
        rate, tasks = next(iter(tries.items()))
        tried.append((rate, tasks[0]))
        found.setdefault(rate, []).append([accuracy[rate]])
    return tried


def test_it_goes_towards_the_best():
    both = [(3, "one"), (3, "two"), (4, "one"), (4, "two"), (2, "one"), (2, "two")]
    assert walk({2: 0.79, 3: 0.8, 4: 0.79}) == both
    assert walk({1: 0.79, 2: 0.81, 3: 0.8, 4: 0.79}) == [*both, (1, "one"), (1, "two")]
    assert walk({2: 0.79, 3: 0.8, 4: 0.81, 5: 0.79}) == [*both[:4], (5, "one"), (5, "two")]


def test_a_neighbour_far_behind_is_not_tried_on_the_other_tasks():
    assert walk({2: 0.79, 3: 0.8, 4: 0.5}) == [
        (3, "one"),
        (3, "two"),
        (4, "one"),
        (2, "one"),
        (2, "two"),
    ]


def test_the_rate_is_the_best_over_all_tasks():
    found = {2.0: [[0.80], [0.60]], 3.0: [[0.78], [0.64]], 4.0: [[0.70], [0.66]]}
    assert standing(found).chosen == 3.0


def test_what_other_seeds_find_can_turn_the_choice():
    found = {1.0: [[0.5]], 2.0: [[0.79], [0.6]], 3.0: [[0.8], [0.6]], 4.0: [[0.5]]}
    assert standing(found).chosen == 3.0
    found[3.0][0] += [0.6]
    assert standing(found).best == 2.0


def test_ties_go_to_the_lower_loss():
    rows = {
        rate: {task: [measured(0.5, loss=loss)] for task in TASKS}
        for rate, loss in ((2.0, 0.9), (3.0, None), (4.0, 1.0))
    }
    assert Search(rows, 3.0, TASKS, TINY).best == 2.0


def test_the_edge_is_an_error():
    with pytest.raises(ValueError, match="edge"):
        standing({4.0: [[0.5], [0.5]], 5.0: [[0.9], [0.9]]}, 4.0)


def test_the_other_seeds_start_when_the_search_is_over(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    start = METHODS["ss"].start
    place = GRID.index(start)
    both = "headlines", "social_iqa"
    expected = [
        ([(task, start, 0) for task in both], 13, 0.8),
        ([("headlines", GRID[place + step], 0) for step in (1, -1)], 11, 0.5),
        ([(task, start, seed) for seed in (1, 2) for task in both], 7, 0.8),
        ([("boolq", start, seed) for seed in range(3)], 3, 0.4),
        ([], 0, 0.0),
    ]
    for places, count, accuracy in expected:
        jobs, left = open_jobs(results, "ss", "small", 3)
        assert jobs == [Job(task, "ss", rate, seed) for task, rate, seed in places]
        assert left == count
        for job in jobs:
            results.add(job, measured(accuracy))
    assert search(results, "ss", "small").chosen == start


def test_an_ablation_is_no_part_of_the_search(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    start = METHODS["ss"].start
    results.add(Job("headlines", "ss", start, 0, params={"slice": "leading"}), measured(0.9))
    jobs, _ = open_jobs(results, "ss", "small", 3)
    assert Job("headlines", "ss", start, 0) in jobs


def test_what_is_done_is_done_after_a_restart_and_a_torn_line_is_not(tmp_path):
    path = tmp_path / "results.jsonl"
    job, other = Job("boolq", "ss", 1e-3, 0), Job("boolq", "ss", 1e-3, 1, params={"r_intra": 4})
    Results(path).add(job, {**measured(0.5), "test_loss": math.nan})
    with path.open("a") as file:
        file.write('{"task": "boolq", "method"')
    results = Results(path)
    assert results.get(job)["test_loss"] is None
    assert results.get(other) is None
    results.add(other, {**measured(0.6), "seed": 1})
    again = Results(path)
    assert again.rows == results.rows
    assert again.get(other)["validation_accuracy"] == 0.6
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
