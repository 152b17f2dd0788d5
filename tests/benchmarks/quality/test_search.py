"""The search of a learning rate ends where neither neighbour is better, and the other seeds follow."""

import argparse
import json

import pytest
from sweep.methods import ABLATIONS, FRONT, GRID, METHODS, SIZES
from sweep.results import Job, Results
from sweep.running import chains, sweep
from sweep.search import best_rate, finished, search, untried

from bishare_dsl import plan_spec

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
        assert search(results, "boolq", "ss", 3) == (
            [Job("boolq", "ss", rate, seed) for rate, seed in jobs],
            left,
        )
        over = finished(results, "boolq").get("ss", [{}])
        assert over[0].get("rate") == (start if left <= 2 else None)
        for rate, seed in jobs:
            results.add(Job("boolq", "ss", rate, seed), measured(accuracy))


def test_an_ablation_is_no_part_of_the_search(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    start = METHODS["ss"].start
    results.add(Job("boolq", "ss", start, 0, params={"slice": "leading"}), measured(0.9))
    assert search(results, "boolq", "ss", 3)[0] == [Job("boolq", "ss", start, 0)]


def test_what_is_done_is_done_after_a_restart_and_a_torn_line_is_not(tmp_path):
    path = tmp_path / "results.jsonl"
    job, other = Job("boolq", "ss", 1e-3, 0), Job("boolq", "ss", 1e-3, 1, params={"r_intra": 4})
    Results(path).add(job, measured(0.5))
    with path.open("a") as file:
        file.write('{"task": "boolq", "method"')
    results = Results(path)
    assert list(results) == [job]
    results.add(other, measured(0.6))
    again = Results(path)
    assert again == results
    assert again[other]["validation_accuracy"] == 0.6
    assert json.loads(path.read_text().splitlines()[-1])["params"] == {"r_intra": 4}


def options(**settings):
    return argparse.Namespace(**{"ablations": False, "seeds": 1, **settings})


def test_an_ablation_waits_for_the_rate_of_its_method(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    wanted = options(tasks=["headlines"], ablations=True, seeds=2)
    assert list(chains(results, wanted)) == []
    for job in (Job("headlines", "gt", rate, 0) for rate in (1e-3, 2e-3, 5e-3)):
        results.add(job, measured(0.8 if job.rate == 2e-3 else 0.7))
    (first, _), (second, _) = chains(results, wanted)
    assert first == [
        Job("headlines", "gt", 2e-3, seed, params={"gates": "kaiming_normal"}) for seed in (0, 1)
    ]
    results.add(second[0], measured(0.8))
    assert [jobs for jobs, _ in chains(results, wanted)] == [first, second[1:]]


def counts(model):
    return {
        name: plan_spec(method.spec, model, params=dict(method.params)).trainable
        for name, method in METHODS.items()
        if not method.peft
    }


def test_the_specs_of_bishare_stay_within_the_largest_budget_of_the_paper():
    found = counts("smollm2-135m")
    for name in ("ss", "gt", "ke_r_1", "ke_1_r", "rasa", "lily"):
        assert found[name] <= 0.4459 * found["lora"], name


def test_a_point_of_the_front_is_near_its_size():
    """On SmolLM2-135M, whose LoRA of rank 8 is the largest."""
    found = counts("smollm2-135m")
    for names in FRONT.values():
        for name, size in zip(names, SIZES, strict=True):
            assert found[name] == pytest.approx(float(size[:-1]) * 1e6, rel=0.2), name


def test_every_ablation_can_be_planned():
    for variants in ABLATIONS.values():
        for name, params in variants:
            method = METHODS[name]
            assert plan_spec(method.spec, "llama-7b", params={**method.params, **params}).trainable


def run_in_a_worker(jobs, base, cache):
    """Stand for runs; the highest rate breaks down, with an error."""
    if any(job.rate == 5e-3 for job in jobs):
        raise ArithmeticError("too high")
    return [{**measured(0.8 if job.rate == 2e-3 else 0.7), "cpu_s": 1} for job in jobs]


def test_a_sweep_does_what_is_left_and_one_run_that_fails_does_not_end_it(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr("sweep.training.run", run_in_a_worker)
    monkeypatch.setattr("harness.model.smollm2_folder", lambda cache: cache)
    results = Results(tmp_path / "results.jsonl")
    results.add(Job("headlines", "base", 0.0, 0), measured(0.5))
    wanted = options(tasks=["headlines"], methods=["ss"], workers=2, cache=tmp_path)
    sweep(results, wanted)
    assert [(job.method, job.rate) for job in Results(results.path)] == [
        ("base", 0.0),
        ("ss", 2e-3),
        ("ss", 1e-3),
    ]
    row = results[Job("headlines", "ss", 2e-3, 0)]
    assert row["machine"].endswith("2 runs at a time")
    assert {"python", "bishare", "torch"} < set(row["versions"])
    shown = capsys.readouterr()
    assert "FAILED headlines ss lr 0.005 seed 0" in shown.out
    assert "ArithmeticError: too high" in shown.err
