"""What can be said of tasks before a model is loaded."""

import json
import time

import pytest

from bishare_dsl.evaluate import EvaluateError
from bishare_dsl.evaluate.tasks import load_tasks
from tests.support.tasks import tiny_tasks, write_task


@pytest.fixture
def folder(tmp_path):
    return tiny_tasks(tmp_path / "mine", rows=3)


def problems(*names, **settings):
    with pytest.raises(EvaluateError) as caught:
        load_tasks(names, **settings)
    return caught.value.problems


def test_every_unknown_name_is_told_with_the_nearest(folder):
    found = problems("tiny_choose", "tiny_chose", "arc_esy", "xqz*", include_path=folder)
    assert [problem.code for problem in found] == ["BS802"] * 3
    assert [problem.help for problem in found[:2]] == [
        "did you mean `tiny_choose`?",
        "did you mean `arc_easy`?",
    ]
    assert "--list-tasks" in found[2].help


def test_a_file_that_cannot_be_read_is_told_when_a_name_is_missing(folder):
    (folder / "broken.yaml").write_text("task: [")
    [problem] = problems("broken", include_path=folder)
    assert problem.code == "BS802"
    assert f"lm_eval skipped {folder / 'broken.yaml'}" in problem.help


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "no such folder"),
        (lambda path: path.write_text(""), "a file"),
        (lambda path: path.mkdir(), "no .yaml file"),
    ],
)
def test_a_folder_without_tasks(tmp_path, make, reason):
    make(tmp_path / "mine")
    [problem] = problems("mine", include_path=tmp_path / "mine")
    assert problem.code == "BS804"
    assert reason in problem.message


def test_patterns_tags_and_files_are_names_too(folder):
    write_task(folder, "third", tag="ours", output_type="multiple_choice", doc_to_choice="words")
    loaded = load_tasks(["tiny_*", "ours", str(folder / "third.yaml")], include_path=folder)
    [(shots, tasks)] = loaded.runs
    assert shots is None
    assert {task.task_name for task in tasks} == {"third", "tiny_choose", "tiny_write"}
    [(_, [task])] = load_tasks([str(folder / "tiny_write.yaml")]).runs
    assert task.task_name == "tiny_write"


def test_local_tasks_need_neither_lm_eval_s_index_nor_the_hub(folder, monkeypatch):
    from lm_eval.tasks import TaskManager

    real = TaskManager.__init__

    def local_only(self, *, include_path=None, include_defaults=True):
        assert not include_defaults
        real(self, include_path=include_path, include_defaults=False)

    monkeypatch.setattr(TaskManager, "__init__", local_only)
    monkeypatch.setattr("bishare_dsl.evaluate.tasks.hub_or_cache", None)
    [(_, tasks)] = load_tasks(["tiny_choose", "tiny_write"], include_path=folder).runs
    assert len(tasks) == 2


def test_data_that_cannot_be_fetched_is_told_at_once(monkeypatch):
    import datasets
    from huggingface_hub import constants, get_session

    hooks = get_session().event_hooks
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(
        time, "sleep", lambda _: pytest.fail("it is tried again, which takes 23 seconds")
    )
    found = problems("commonsense", "gsm8k")
    assert [problem.code for problem in found] == ["BS803"] * 9
    assert found[1].message.startswith("the task `piqa` cannot be loaded: ")
    assert "cannot be reached" in found[1].help
    assert not constants.HF_HUB_OFFLINE
    assert not datasets.config.HF_HUB_OFFLINE
    assert get_session().event_hooks == hooks


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"dataset_kwargs": {"data_files": {"test": "nowhere.jsonl"}}}, "nowhere.jsonl"),
        ({"doc_to_choice": "wrods", "output_type": "multiple_choice"}, "malformed"),
        ({"output_type": "guessing"}, "guessing"),
        ({"doc_to_image": ["text"], "output_type": "generate_until"}, "pictures"),
    ],
)
def test_a_task_that_is_wrong_in_itself(folder, config, reason):
    write_task(folder, "wrong", **config)
    [problem] = problems("wrong", include_path=folder)
    assert problem.code == "BS803"
    assert problem.message.startswith("the task `wrong` cannot be loaded: ")
    assert reason in problem.message


def test_code_that_a_model_writes_is_run_only_when_allowed(folder):
    write_task(folder, "unsafe", output_type="generate_until", unsafe_code=True)
    [problem] = problems("unsafe", include_path=folder)
    assert problem.code == "BS808"
    assert "--confirm_run_unsafe_code" in problem.help
    assert load_tasks(["unsafe"], include_path=folder, confirm_run_unsafe_code=True)


def test_tasks_of_two_groups_at_once(folder):
    for name in ("one", "two"):
        group = {"group": name, "task": ["tiny_choose"]}
        (folder / f"{name}.yaml").write_text(json.dumps(group))
    [problem] = problems("one", "two", include_path=folder)
    assert problem.code == "BS803"
    assert "Duplicate task 'tiny_choose'" in problem.message


def test_lm_eval_is_optional(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    [problem] = problems("piqa")
    assert problem.code == "BS735"
    assert problem.help == "pip install 'bishare[eval]'"
