import pytest

from bishare_dsl.evaluate import Evaluation


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
        "group_subtasks": {},
        "n-shot": {"speed": 0, "quiz": 4},
        "higher_is_better": {"speed": {"seconds": False}, "quiz": {"acc": True}},
    }


@pytest.fixture
def evaluation():
    results = {
        "base": [run(acc=0.25, seconds=2)],
        "one": [run(acc=0.75, seconds=3.5)],
        "two": [run(acc=0.75, seconds=4)],
    }
    return Evaluation("tiny", results)


def test_table(evaluation):
    assert str(evaluation) == "\n".join(
        (
            "|Tasks|n-shot|  Metric  |   |     base      |      one       |      two       |",
            "|-----|------|----------|---|---------------|----------------|----------------|",
            "|speed|0     |seconds   |↓  |2.0000*        |3.5000          |4.0000          |",
            "|quiz |4     |acc       |↑  |0.2500 ± 0.0123|0.7500 ± 0.0123*|0.7500 ± 0.0123*|",
            "|quiz |4     |f1, strict|   |0.1250         |0.3750          |0.3750          |",
            "",
            "* best of its row",
        )
    )


def test_the_table_of_one_model_is_lm_eval_s(evaluation):
    from lm_eval.utils import make_table

    one = {**run(acc=0.25, seconds=2), "versions": {"quiz": 2}}
    alone = Evaluation("tiny", {"one": [one]}, limit=3)
    assert str(alone) == make_table(one) + "\nlimited to 3 rows of each task: not for reporting"


def test_data(evaluation):
    data = evaluation.as_data()
    assert data["models"] == ["base", "one", "two"]
    [seconds, acc, f1] = data["rows"]
    assert (seconds["best"], acc["best"], f1["best"]) == (["base"], ["one", "two"], [])
    assert acc["scores"]["one"] == {"value": 0.75, "stderr": 0.0123456, "samples": 30}
    assert (f1["filter"], f1["higher_is_better"], f1["scores"]["two"]["stderr"]) == (
        "strict",
        None,
        None,
    )


def test_a_model_that_was_not_finished_has_no_figures():
    first, second = run(acc=0.5, seconds=1), run(acc=0.5, seconds=1)
    second["n-shot"]["quiz"] = 5
    evaluation = Evaluation("tiny", {"base": [first, second], "one": [first]}, limit=0.5)
    quiz = [row for row in evaluation.rows if row.metric == "acc"]
    assert [(row.num_fewshot, list(row.scores)) for row in quiz] == [
        (4, ["base", "one"]),
        (5, ["base"]),
    ]
    assert "limited to 50% of each task" in str(evaluation)
