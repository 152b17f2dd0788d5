"""The tables are made of the results alone, and the test part has no say in what is chosen."""

import math
import statistics

import pytest
from sweep.methods import GRID, METHODS
from sweep.report import best_bishare, paired, put, summarise
from sweep.results import Job, Results
from sweep.training import bitmask


def fill(results, method, parameters, validation, hits):
    """A search that is over, and two more seeds."""
    start = METHODS[method].start
    place = GRID.index(start)
    jobs = [Job("boolq", method, start, seed) for seed in range(3)]
    jobs += [Job("boolq", method, GRID[place + step], 0) for step in (1, -1)]
    for job in jobs:
        accuracy = validation if job.rate == start else 0.1
        right = round(10 * accuracy)
        results.add(
            job,
            {
                "validation_accuracy": accuracy,
                "validation_loss": 1.0,
                "validation_right": bitmask([True] * right + [False] * (10 - right)),
                "validation_rows": 10,
                "test_accuracy": hits / 8,
                "test_rows": 8,
                "test_right": bitmask([True] * hits + [False] * (8 - hits)),
                "parameters": parameters,
                "bytes": 4 * parameters,
                "machine": "a machine",
                "versions": {"python": "3"},
            },
        )


@pytest.fixture
def folder(tmp_path):
    marks = [
        f"<!-- {n} -->\nold\n<!-- /{n} -->"
        for n in ("goal", "tables", "search", "ablations", "machine")
    ]
    (tmp_path / "README.md").write_text("\n\n".join(["# Before", *marks, "After."]))
    return tmp_path


def test_the_best_bishare_method_is_chosen_by_the_validation_part(folder):
    results = Results(folder / "results.jsonl")
    fill(results, "lora", 1000, 0.9, 5)
    fill(results, "ss", 400, 0.8, 6)
    fill(results, "gt", 300, 0.7, 8)
    summarise(results, folder, "small", 3)
    text = (folder / "README.md").read_text()
    assert text.startswith("# Before")
    assert text.endswith("After.")
    assert "old" not in text
    assert "SS {2,2,32} 75.00% against LoRA's 62.50% (+12.50" in text
    assert "with 40.0% of its parameters: **met**" in text
    line = next(line for line in text.splitlines() if line.startswith("| GT"))
    assert "| 300 | 30.0% | 1,200 | 0.002 | 70.0 | 100.0 ± 0.0 | +37.5" in line
    assert (
        "| boolq | GT {1,8,16} size 96 | 0.001: 10.0, **0.002**: 70.0 (3 seeds), 0.005: 10.0 |"
        in text
    )
    assert (folder / "accuracy.svg").read_text().startswith("<?xml")


def run_of(*right):
    """A run, by which of its test rows it is right on."""
    return {
        "test_right": bitmask([bool(hit) for hit in right]),
        "test_rows": len(right),
        "test_accuracy": sum(right) / len(right),
    }


def test_paired_differences():
    one, other = run_of(1, 1, 0, 1), run_of(1, 0, 0, 1)
    gap, error = paired([one, one], [run_of(1, 0, 0, 0)])
    assert gap == 0.5
    assert error == pytest.approx(statistics.stdev([0, 1, 0, 1]) / 2)
    assert paired([one, one], [one, one]) == (0, 0)

    gap, error = paired([one, other], [run_of(1, 0, 0, 0)])
    # Of the four rows the gaps are 0, 1/2, 0 and 1; the seeds are right on 3/4 and on 2/4.
    assert gap == pytest.approx(3 / 8)
    rows, seeds = statistics.variance([0, 0.5, 0, 1]) / 4, statistics.variance([3 / 4, 2 / 4]) / 2
    assert error == pytest.approx(math.sqrt(rows + seeds))


def test_lora_is_no_bishare_method():
    row = {"validation_accuracy": 0.9}
    assert best_bishare({"lora": [row], "peft_lora": [row]}) is None


def test_put_leaves_the_rest_alone(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("a\n<!-- t -->\nold\n<!-- /t -->\nb\n")
    put(path, "t", "new\nlines")
    assert path.read_text() == "a\n<!-- t -->\nnew\nlines\n<!-- /t -->\nb\n"
