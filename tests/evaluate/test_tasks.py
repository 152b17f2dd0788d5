"""What can be said of tasks before a model is loaded."""

import json

import pytest

from bishare_dsl.diagnostics import EvaluateError
from bishare_dsl.evaluate.tasks import load_tasks
from tests.support.tasks import tiny_tasks, write_task


@pytest.fixture
def folder(tmp_path):
    return tiny_tasks(tmp_path / "mine", rows=3)


def problems(*names, include_path=None):
    with pytest.raises(EvaluateError) as caught:
        load_tasks(names, include_path)
    return caught.value.problems


def test_every_unknown_name_is_told_with_the_nearest(folder):
    found = problems("tiny_choose", "tiny_chose", "arc_esy", "xqz*", include_path=folder)
    assert [problem.code for problem in found] == ["BS802"] * 3
    assert [problem.help for problem in found] == [
        "did you mean `tiny_choose`?",
        "did you mean `arc_easy`?",
        "`lm-eval ls tasks` lists them",
    ]


def test_patterns_tags_groups_and_files_are_names_too(folder):
    write_task(folder, "third", tag="ours", output_type="multiple_choice", doc_to_choice="words")
    group = {"group": "both", "task": ["tiny_choose", "tiny_write"]}
    (folder / "both.yaml").write_text(json.dumps(group))
    manager, [both, third] = load_tasks(["both", "ours"], folder)
    assert [both.name, third.task_name] == ["both", "third"]
    assert len(manager.load([both, third])["tasks"]) == 3
    _, tasks = load_tasks(["tiny_*", str(folder / "third.yaml")], folder)
    assert [task.task_name for task in tasks] == ["tiny_choose", "tiny_write", "third"]


def test_local_tasks_do_not_need_lm_eval_s_index(folder, monkeypatch):
    from lm_eval.tasks import TaskManager

    real = TaskManager.__init__

    def local_only(self, *, include_path=None, include_defaults=True):
        assert not include_defaults
        real(self, include_path=include_path, include_defaults=False)

    monkeypatch.setattr(TaskManager, "__init__", local_only)
    _, tasks = load_tasks(["tiny_choose", "tiny_write"], folder)
    assert len(tasks) == 2


def test_every_task_that_cannot_be_loaded_is_told_at_once(monkeypatch):
    from lm_eval.tasks import TaskManager

    def refuse(self, names):
        raise ConnectionError("no network")

    monkeypatch.setattr(TaskManager, "load", refuse)
    found = problems("arc_easy", "piqa")
    assert [problem.code for problem in found] == ["BS803"] * 2
    assert found[1].message == "the task `piqa` cannot be loaded: no network"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"dataset_kwargs": {"data_files": {"test": "nowhere.jsonl"}}}, "nowhere.jsonl"),
        ({"doc_to_choice": "wrods", "output_type": "multiple_choice"}, "malformed"),
        ({"output_type": "guessing"}, "guessing"),
    ],
)
def test_a_task_that_is_wrong_in_itself(folder, config, reason):
    write_task(folder, "wrong", **config)
    [problem] = problems("wrong", include_path=folder)
    assert problem.code == "BS803"
    assert problem.message.startswith("the task `wrong` cannot be loaded: ")
    assert reason in problem.message


def test_lm_eval_is_optional(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    [problem] = problems("piqa")
    assert problem.code == "BS735"
    assert problem.help == "pip install 'bishare[eval]'"
