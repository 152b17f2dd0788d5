"""Groups that the user names, trained as the tasks of a library."""

import json

import pytest
import torch

from bishare_dsl.diagnostics import AdapterError, BishareError
from bishare_dsl.folder.files import add_to_library, names_in, read_adapter, save_library
from bishare_dsl.folder.groups import GROUPS, Groups, read_groups
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer
from bishare_dsl.train import TrainingInterrupted, train
from tests.train.test_resume import Asks

HOW = {"tokenizer": tiny_tokenizer(), "quiet": True, "learning_rate": 0.03, "max_steps": 4}
LIBRARY = {"spec": "library_core", "params": {"r": 2, "first": -1}}
LIMITS = {"sales/globex": 20, "sales/hooli": 25, "support/acme": 80}


def rows(limit, first, count=8):
    return [
        {"prompt": f"{n}: ", "completion": "yes" if n > limit else "no", "options": ["yes", "no"]}
        for n in ((37 * i) % 97 for i in range(first, first + count))
    ]


def write(path, some):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, some)))


@pytest.fixture
def data(tmp_path):
    for first, (name, limit) in enumerate(LIMITS.items()):
        write(tmp_path / "data" / f"{name}.jsonl", rows(limit, 10 * first))
    return tmp_path / "data"


def trained(data, out, **how):
    return train(model=tiny_model("llama"), data=data, output_dir=out, **{**LIBRARY, **HOW, **how})


def tensors(library):
    return {name: read_adapter(f"{library}#{name}").tensors() for name in names_in(library)}


def test_a_group_is_one_task_with_the_rows_of_its_files(data, tmp_path):
    result = trained(data, tmp_path / "out", groups="by-folder")
    assert [(task.name, task.rows) for task in result.tasks] == [("sales", 16), ("support", 8)]
    library = tmp_path / "out" / "library"
    assert set(names_in(library)) == {"sales", "support"}
    record = read_groups(library)
    assert record.tasks == {"sales": ("globex", "hooli"), "support": ("acme",)}
    assert not record.were_found
    # The same as one file for each group.
    write(tmp_path / "sales.jsonl", rows(20, 0) + rows(25, 10))
    write(tmp_path / "support.jsonl", rows(80, 20))
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("sales", "support")}
    trained(files, tmp_path / "files")
    assert read_groups(tmp_path / "files" / "library") is None
    expected = tensors(tmp_path / "files" / "library")
    for name, found in tensors(library).items():
        for key, tensor in found.items():
            torch.testing.assert_close(tensor, expected[name][key])


def test_a_step_has_a_batch_of_each_task_of_a_group(data, tmp_path, capsys):
    batch = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    how = {**batch, "max_steps": None, "num_train_epochs": 1, "quiet": False}
    result = trained(data, tmp_path / "out", groups="by-folder", **how)
    # 16 rows of two tasks and 8 rows of one, four of each task in a step.
    assert [task.steps for task in result.tasks] == [2, 2]
    assert result.batch == 8
    assert "2 steps of 4 examples of each task of a group" in capsys.readouterr().err


def test_rows_are_held_out_of_each_task_of_a_group(data, tmp_path):
    result = trained(data, tmp_path / "out", groups="by-folder", eval_split=2)
    assert [task.data["eval"].kept for task in result.tasks] == [4, 2]
    assert [task.rows for task in result.tasks] == [12, 6]
    assert all(task.accuracy is not None for task in result.tasks)


def test_groups_without_a_library_are_adapters(data, tmp_path):
    result = trained(data, tmp_path / "out", groups="by-folder", spec="lora", params={"r": 2})
    assert [task.folder for task in result.tasks] == [
        str(tmp_path / "out" / name) for name in ("sales", "support")
    ]


def test_a_group_of_tasks_with_and_without_options_is_refused_before_anything_is_written(
    data, tmp_path
):
    plain = [{"prompt": row["prompt"], "completion": row["completion"]} for row in rows(20, 0)]
    write(data / "sales" / "hooli.jsonl", plain)
    with pytest.raises(BishareError, match=r"BS749.*`sales`, only one of `globex` and `hooli`"):
        trained(data, tmp_path / "out", groups="by-folder")
    assert not (tmp_path / "out").exists()


def test_a_stopped_run_of_named_groups_goes_on(data, tmp_path):
    trained(data, tmp_path / "whole", groups="by-folder")
    with pytest.raises(TrainingInterrupted):
        trained(data, tmp_path / "out", groups="by-folder", callbacks=[Asks(2)])
    how = {"model": tiny_model("llama"), "resume": tmp_path / "out"}
    train(**how, tokenizer=HOW["tokenizer"], quiet=True)
    library = tmp_path / "out" / "library"
    expected = tensors(tmp_path / "whole" / "library")
    for name, found in tensors(library).items():
        assert all(torch.equal(found[key], tensor) for key, tensor in expected[name].items())
    assert read_groups(library) == read_groups(tmp_path / "whole" / "library")
    # Another file in a folder of a group is another run.
    write(data / "support" / "wonka.jsonl", rows(80, 40))
    with pytest.raises(BishareError, match="of other examples"):
        train(**how, data=str(data), groups="by-folder", tokenizer=HOW["tokenizer"], quiet=True)


def test_the_record_goes_with_copies_and_not_into_a_library_of_tasks(data, tmp_path):
    trained(data, tmp_path / "out", groups="by-folder")
    library = tmp_path / "out" / "library"
    stored = read_adapter(f"{library}#sales")
    add_to_library(library, {"wonka": stored.tensors()}, tmp_path / "copy")
    assert read_groups(tmp_path / "copy") == read_groups(library)
    # A library that replaces it has other tasks.
    save_library(library, stored.plan, {"a": stored.tensors()}, stored.spec_text, seed=0)
    assert read_groups(library) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"tasks": {"a": 3}}', '{"tasks": {}, "more": 1}'])
def test_a_damaged_record_is_an_error_with_its_place(tmp_path, text):
    (tmp_path / GROUPS).write_text(text)
    with pytest.raises(AdapterError, match=r"BS608.*groups\.json.*cannot be read"):
        read_groups(tmp_path)
    assert Groups.model_validate_json(Groups(tasks={"a": ("b",)}).text()).tasks == {"a": ("b",)}
