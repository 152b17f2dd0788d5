import pytest

from bishare_dsl.evaluate.groups import GROUPS, expand


def test_names_expand_by_the_table():
    commonsense = GROUPS["commonsense"]
    assert len(commonsense.tasks) == 8
    assert expand(["gsm8k", "piqa", "commonsense", "mmlu"], None) == {
        5: {"gsm8k": None, "mmlu": None},
        None: {"piqa": None},
        0: {"commonsense": commonsense, "mmlu": None},
    }


def test_a_number_of_shots_replaces_the_table_s():
    assert expand(["mmlu", "gsm8k", "piqa"], 3) == {3: {"mmlu": None, "gsm8k": None, "piqa": None}}


def test_own_tasks_keep_their_names():
    assert expand(["commonsense"], None, own=["commonsense"]) == {None: {"commonsense": None}}
    # It is the task that the group is about, wherever it comes from.
    assert expand(["gsm8k"], None, own=["gsm8k"]) == {5: {"gsm8k": None}}


@pytest.mark.parametrize("name", GROUPS)
def test_lm_eval_has_every_task(name):
    from lm_eval.tasks import TaskManager

    manager = TaskManager()  # Of the folders that conftest copies.
    assert set(GROUPS[name].tasks) <= set(manager.all_tasks)
