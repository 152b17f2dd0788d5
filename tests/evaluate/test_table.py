import json

import pytest

from bishare_dsl.evaluate.table import chance_of, rows_of, table_of
from bishare_dsl.evaluate.tasks import load_tasks
from tests.support.tasks import tiny_tasks, write_task


def run(**figures):
    return {
        "results": {
            "speed": {"alias": "speed", "sample_len": 9, "seconds,none": figures["seconds"]},
            "quiz": {
                "alias": "quiz",
                "sample_len": 30,
                "acc,none": figures["acc"],
                "acc_stderr,none": 0.0123456,
                "f1,strict": figures["acc"] / 2,
                "f1_stderr,strict": "N/A",
            },
        },
        "n-shot": {"quiz": 4},
    }


def test_models_stand_side_by_side_with_chance():
    results = {"base": run(acc=0.25, seconds=2), "one": run(acc=0.75, seconds=3.5)}
    rows = rows_of(results, {"quiz": 0.2, "speed": None})
    assert str(table_of(rows, results)).splitlines() == [
        "task   n-shot  metric     chance             base              one",
        "-----  ------  ---------  ------  ---------------  ---------------",
        "speed          seconds                     2.0000           3.5000",
        "quiz        4  acc        0.2000  0.2500 ± 0.0123  0.7500 ± 0.0123",
        "quiz        4  f1 strict                   0.1250           0.3750",
    ]
    assert rows[1] == {
        "task": "quiz",
        "num_fewshot": 4,
        "metric": "acc",
        "filter": "none",
        "chance": 0.2,
        "scores": {
            "base": {"value": 0.25, "stderr": 0.0123456},
            "one": {"value": 0.75, "stderr": 0.0123456},
        },
    }
    assert rows[2]["scores"]["one"]["stderr"] is None


def test_chance_is_known_of_a_choice_alone(tmp_path):
    folder = tiny_tasks(tmp_path / "mine", rows=4)
    choice = {"output_type": "multiple_choice"}
    write_task(folder, "two", **choice, doc_to_choice='{{["a", "b"]}}', doc_to_target=1)
    for group, task in {"same": ["tiny_choose"], "mixed": ["two", "tiny_write"]}.items():
        (folder / f"{group}.yaml").write_text(json.dumps({"group": group, "task": task}))
    manager, loaded = load_tasks(["same", "mixed"], folder)
    tasks = manager.load(loaded)
    samples = {
        name: [{"doc": doc} for doc in task.eval_docs] for name, task in tasks["tasks"].items()
    }
    assert chance_of(tasks, samples) == {
        "tiny_choose": pytest.approx(1 / 3, abs=1e-6),
        "two": 0.5,
        "same": pytest.approx(1 / 3, abs=1e-6),
        "mixed": None,
    }
