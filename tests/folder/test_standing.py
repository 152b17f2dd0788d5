"""What a command may write over: a table of what may stand in a folder, and who refuses it."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bishare_dsl.cli.files import check_out
from bishare_dsl.cli.report import CommandError
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.folder.files import check_place
from bishare_dsl.folder.standing import Kind, is_of_run, obstacle_at
from bishare_dsl.train.errors import TrainError
from bishare_dsl.train.folder import check_new, hold
from tests.folder.test_files import config_of, reseal, saved

HERE = Path(__file__).parent


def empty(folder):
    folder.mkdir()


def killed_writer(folder):
    folder.mkdir()
    (folder / ".adapter_config.json.0123abcd.new").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"begun")


def adapter(folder):
    saved(folder)


def result(folder):
    saved(folder)
    reseal(folder, command="compile")


def damaged(folder):
    saved(folder)
    (folder / "adapter_config.json").write_text("{")


def library(folder):
    shutil.copytree(HERE / "of_0_5" / "library", folder)


def of_peft(folder):
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "adapter_model.safetensors").write_bytes(b"lora_A")


def tensors_alone(folder):
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"lora_A")


def config_alone(folder):
    folder.mkdir()
    (folder / "adapter_config.json").write_text("mine")


def base(folder):
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")


def checkpoint_in(folder, file):
    (folder / "checkpoint-500").mkdir(parents=True)
    (folder / "checkpoint-500" / file).write_bytes(b"weights")


def of_trl(folder):
    checkpoint_in(folder, "model.safetensors")


def of_trl_with_peft(folder):
    checkpoint_in(folder, "adapter_model.safetensors")


def of_trl_beside_a_run(folder):
    killed_run(folder)
    shutil.rmtree(folder / "checkpoint-500")
    checkpoint_in(folder, "model-00001-of-00002.safetensors")


def log(folder):
    folder.mkdir()
    (folder / "trainer_state.json").write_text("{}")


def arguments_of_another(folder):
    folder.mkdir()
    (folder / "run.json").write_text('{"mine": 1}')


def run(folder):
    killed_run(folder)
    (folder / "checkpoint-500" / "seal.json").write_text("{}")


def killed_run(folder):
    checkpoint_in(folder, "adapter_model.safetensors")
    (folder / "run.json").write_text('{"spec": "lora"}')


def killed_run_of_tasks(folder):
    killed_run(folder)
    place = folder / "checkpoint-500"
    save_file({"own": torch.ones(2), "common": torch.ones(2)}, place / "model.safetensors")


def killed_run_that_has_begun_a_file(folder):
    killed_run(folder)
    (folder / "checkpoint-500" / "model.safetensors").touch()


def of_another_trainer_beside_a_run(folder):
    killed_run(folder)
    place = folder / "checkpoint-500"
    save_file({"own": torch.ones(2), "lm_head.weight": torch.ones(2)}, place / "model.safetensors")


def foreign(folder):
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")


def a_file(folder):
    folder.write_text("mine")


def dangling(folder):
    folder.symlink_to("nowhere")


# What stands there: its kind, and who takes it: compile, compile --force, a save of an adapter and of a
# library, a new run of one task, a run's folder of one of several tasks.
TABLE = [
    (empty, None, "compile force adapter library run"),
    (killed_writer, None, "compile force adapter library run"),
    (adapter, Kind.ADAPTER, "adapter"),
    (result, Kind.RESULT, "force adapter"),
    (damaged, Kind.ADAPTER, "adapter"),
    (library, Kind.LIBRARY, "library"),
    (of_peft, Kind.PEFT_ADAPTER, ""),
    (tensors_alone, Kind.FOREIGN, ""),
    (config_alone, Kind.FOREIGN, ""),
    (base, Kind.MODEL, ""),
    (of_trl, Kind.CHECKPOINT, "adapter library"),
    (of_trl_with_peft, Kind.CHECKPOINT, "adapter library"),
    (of_trl_beside_a_run, Kind.CHECKPOINT, "adapter library"),
    (log, Kind.LOG, "adapter library"),
    (arguments_of_another, Kind.LOG, "adapter library"),
    (run, Kind.RUN, "adapter library"),
    (of_another_trainer_beside_a_run, Kind.CHECKPOINT, "adapter library"),
    (killed_run, Kind.OTHER, "adapter library run"),
    (killed_run_of_tasks, Kind.OTHER, "adapter library run"),
    (killed_run_that_has_begun_a_file, Kind.OTHER, "adapter library run"),
    (foreign, Kind.OTHER, "adapter library run"),
    (a_file, Kind.FILE, ""),
    (dangling, Kind.DANGLING, ""),
]
WRITERS = {
    "compile": (lambda folder: check_out(folder, "compile"), AdapterError, "BS618"),
    "force": (
        lambda folder: check_out(folder, "compile", force=True),
        (AdapterError, CommandError),
        "BS618|BS905",
    ),
    "adapter": (check_place, AdapterError, "BS615"),
    "library": (lambda folder: check_place(folder, library=True), AdapterError, "BS615"),
    "run": (lambda folder: check_new(folder, resumes=False), TrainError, "BS740"),
}


def contents(folder):
    if folder.is_symlink():
        return os.readlink(folder)  # noqa: PTH115
    if folder.is_file():
        return folder.read_bytes()
    return {p: p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.mark.parametrize(
    ("stands", "kind", "takes"), TABLE, ids=lambda x: getattr(x, "__name__", "")
)
def test_a_command_replaces_only_what_it_made(stands, kind, takes, tmp_path):
    folder = tmp_path / "out"
    stands(folder)
    before = contents(folder)
    found = obstacle_at(folder, command="compile")
    assert (found and found.kind) == kind
    taken = []
    for name, (check, error, code) in WRITERS.items():
        if name in takes.split():
            check(folder)
            taken.append(name)
        else:
            with pytest.raises(error, match=code):
                check(folder)
        assert contents(folder) == before
    assert taken == takes.split()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "out").mkdir(mode=0)
    for check, error, _ in WRITERS.values():
        with pytest.raises(error, match=r"BS616|BS747"):
            check(tmp_path / "out")


def test_the_result_of_another_command_is_not_replaced(tmp_path):
    result(tmp_path / "out")
    with pytest.raises(CommandError, match=r"BS905.*it has an adapter"):
        check_out(tmp_path / "out", "convert", force=True)


@pytest.mark.parametrize(
    ("stands", "why"),
    [(a_file, "it is a file"), (base, "it is the folder of a model"), (run, "it has a run")],
)
def test_a_run_says_what_it_would_replace(stands, why, tmp_path):
    stands(tmp_path / "out")
    with pytest.raises(TrainError, match=f"a run would replace `.*out`: {why}"):
        check_new(tmp_path / "out", resumes=False)


@pytest.mark.parametrize("stands", [of_trl, of_trl_with_peft, of_trl_beside_a_run])
def test_a_run_that_begins_deletes_no_checkpoint_of_another_trainer(stands, tmp_path):
    """Also one that appears between the check and the first step."""
    stands(tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(TrainError, match="BS740"), hold(tmp_path / "out", {"spec": "lora"}, None):
        pass
    assert contents(tmp_path / "out") == before


def test_a_run_that_resumes_deletes_its_own_later_checkpoints_alone(tmp_path):
    run(tmp_path / "out")
    resumed = tmp_path / "out" / "checkpoint-500"
    later = tmp_path / "out" / "checkpoint-900"
    later.mkdir()
    (later / "optimizer.pt").write_bytes(b"begun")
    assert is_of_run(later)
    with hold(tmp_path / "out", {}, resumed):
        assert not later.exists()
    later.mkdir()
    (later / "pytorch_model.bin").write_bytes(b"weights")
    with (
        pytest.raises(TrainError, match=r"BS740(.|\n)*checkpoint-900"),
        hold(tmp_path / "out", {}, resumed),
    ):
        pass
    assert (later / "pytorch_model.bin").read_bytes() == b"weights"


def test_a_save_from_python_takes_the_mark_of_a_command_away(tmp_path):
    result(tmp_path / "out")
    saved(tmp_path / "out")
    assert "command" not in config_of(tmp_path / "out")["bishare"]
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["seed"] == 0
