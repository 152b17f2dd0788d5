"""The tables are made of the results alone."""

from pathlib import Path

import pytest
from sweep.methods import GRID, METHODS
from sweep.results import Job, Results
from sweep.tables import overall_table, tables, write
from sweep.training import bitmask

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def fill(results, task, method, parameters, hits, size="small", seeds=3):
    """A search that is over, and two more seeds; each right on the first rows of 40."""
    start = METHODS[method].start
    place = GRID.index(start)
    jobs = [Job(task, method, start, seed, size) for seed in range(seeds)]
    jobs += [Job(task, method, GRID[place + step], 0, size) for step in (1, -1)]
    for job in jobs:
        right = [row < hits + job.seed for row in range(40)]
        results.add(
            job,
            {
                "validation_accuracy": 0.7 if job.rate == start else 0.1,
                "validation_loss": 1.0,
                "test_accuracy": sum(right) / 40,
                "test_rows": 40,
                "test_right": bitmask(right),
                "parameters": parameters,
                "bytes": 4 * parameters,
                "machine": "a machine",
                "versions": {"python": "3"},
            },
        )


@pytest.fixture
def results(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    fill(results, "headlines", "lora", 1000, 20)
    fill(results, "headlines", "ss", 400, 24)
    return results


def test_a_task(results):
    text = tables(results)
    line = next(line for line in text.splitlines() if line.startswith("| SS"))
    assert "| 400 | 40.0% | 1,600 | 0.002 | 70.0 | 62.5 ± 2.5 (3) | +10.0 |" in line
    assert "0.0005: 10.0" not in text
    assert "SS {2,2,32} | 0.001: 10.0, **0.002**: 70.0 (3 seeds), 0.005: 10.0 |" in text
    assert "5 rows" not in text
    assert "- 10 rows: a machine (python 3)." in text


def test_the_mean_is_over_the_tasks_on_which_a_method_ran_and_beside_lora_on_the_same(results):
    fill(results, "social_iqa", "lora", 1000, 30)
    assert not overall_table(results)
    fill(results, "social_iqa", "ss", 400, 32)
    fill(results, "languages", "lora", 1000, 10)
    fill(results, "headlines", "gt", 400, 18)
    fill(results, "languages", "gt", 400, 10)
    # SS is ahead by 10 and by 5 points; GT behind by 5 and by 0.
    text = overall_table(results)
    assert "| SS {2,2,32} | headlines, social_iqa | 72.5 | 65.0 | +7.5 |" in text
    assert "| GT {1,8,16} size 96 | headlines, languages | 37.5 | 40.0 | -2.5 |" in text


def test_the_front_is_beside_lora_of_the_same_size(results):
    fill(results, "headlines", "lora_3", 420, 10)
    text = tables(results).partition("against parameters")[2]
    line = next(line for line in text.splitlines() if "| SS" in line)
    assert line.startswith("| 0.7M | SS {2,2,32} | 400 | 0.002 | 62.5 ± 2.5 (3) | +35.0 |")


def test_an_ablation_is_beside_the_method_at_its_own_rate_though_another_was_chosen_since(results):
    row = results[Job("headlines", "ss", 1e-3, 0)]
    params = {"slice": "leading"}
    results.add(Job("headlines", "ss", 1e-3, 0, params=params), {**row, "test_right": "0" * 10})
    text = tables(results).partition("### The paper's ablations")[2].partition("###")[0]
    [line] = [line for line in text.splitlines() if "SS" in line]
    # The method itself is right on 24 of 40 rows at that rate.
    assert "`slice=leading` | 400 | 0.001 |" in line
    assert "| -60.0 ± " in line


def test_tasks_in_one_run(results):
    ways = {"lora_2": 30, "library_4": 28, "lora": 32, "lora_cut": 30}
    for task in ("quartz", "heart"):
        for way, hits in ways.items():
            row = results[Job("headlines", "ss", METHODS["ss"].start, 0)]
            right = [number < hits for number in range(40)]
            of_way = {"test_accuracy": hits / 40, "test_right": bitmask(right), "bytes": 10 * hits}
            for seed in range(2):
                results.add(Job(task, way, 2e-3, seed, "together"), {**row, **of_way})
    text = tables(results).partition("### Many tasks in one run")[2].partition("###")[0]
    assert "| LoRA r=2 | 600 | 75.0 | 75.0 | **75.0** |  |  |  |" in text
    assert "| library, r=4 | 560 | 70.0 | 70.0 | **70.0** | -5.0 |" in text
    assert "| LoRA r=8, cut to r=2 | 600 | 75.0 | 75.0 | **75.0** | +0.0 |" in text
    assert "2 seeds; 40 test rows of each task." in text


def test_tables_are_put_between_the_marks_of_the_page_and_the_rest_is_left_alone(results, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- tables -->\nold\n<!-- /tables -->\nb\n")
    write(results, page, tmp_path / "front.svg")
    text = tables(results)
    assert page.read_text() == f"a\n<!-- tables -->\n{text}\n<!-- /tables -->\nb\n"
    assert "svg" in (tmp_path / "front.svg").read_text()


def test_the_page_has_the_tables_of_the_results():
    text = (BENCHMARKS / "notes" / "2026-11-27-quality.md").read_text(encoding="utf-8")
    assert tables(Results(BENCHMARKS / "quality" / "results.jsonl")) in text
