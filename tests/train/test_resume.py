"""Interrupted and gone on with is the same as not interrupted, bit for bit."""

import json
import os
import shutil
import signal

import pytest
import torch
from transformers import TrainerCallback

from bishare_dsl.testing.models import tiny_model
from bishare_dsl.train import TrainError, TrainingInterrupted, train
from tests.train.conftest import SMALL, SPEC, go_on, losses, values


class Asks(TrainerCallback):
    """Asks the run to stop while a step is being done."""

    def __init__(self, step, number=signal.SIGINT):
        self.step, self.number = step, number

    def on_step_begin(self, args, state, control, **_):
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), self.number)


IN_ORDER = {"train_sampling_strategy": "sequential", "per_device_train_batch_size": 1}
EACH_EPOCH = {"eval_split": 4, "eval_strategy": "epoch", "logging_strategy": "epoch"}
ADAFACTOR = {"optim": "adafactor", "lr_scheduler_type": "cosine", "max_steps": 9}


@pytest.mark.parametrize(
    ("step", "more"),
    [
        pytest.param(2, {}, id="mid-epoch"),
        pytest.param(6, {}, id="epoch", marks=pytest.mark.long),
        pytest.param(4, IN_ORDER, id="in-order", marks=pytest.mark.long),
        pytest.param(5, {"gradient_checkpointing": True, "bf16": True}, id="bf16"),
        pytest.param(5, EACH_EPOCH, id="eval-epoch", marks=pytest.mark.long),
        pytest.param(3, {"eval_split": 4, "eval_steps": 3}, id="eval-steps"),
        pytest.param(4, ADAFACTOR, id="adafactor", marks=pytest.mark.long),
        pytest.param(3, {"weight_decay": 0.1}, id="decay"),
    ],
)
def test_resuming_is_exact(start, tmp_path, step, more):
    more = {"num_train_epochs": 2, "logging_steps": 1, **more}
    whole = start(tmp_path / "whole", **more)
    with pytest.raises(TrainingInterrupted) as caught:
        start(tmp_path / "parts", callbacks=[Asks(step)], **more)
    assert caught.value.step == step
    assert not (tmp_path / "parts" / "adapter_config.json").exists()
    # The generators of this process are where the run left them: resuming must not depend on that.
    torch.manual_seed(123)
    parts = go_on(tmp_path / "parts")
    assert parts.steps == whole.steps > step
    assert losses(parts) == losses(whole)
    for name, tensor in values(whole).items():
        assert torch.equal(values(parts)[name], tensor), name


def test_dropout_is_drawn(start, files, tmp_path):
    """Otherwise the tests above would show less than they seem to."""
    dry = files / "dry.share"
    dry.write_text(SPEC.replace("dropout 0.2\n", ""))
    wet = start(tmp_path / "wet")
    assert losses(wet) != losses(start(tmp_path / "dry", spec=str(dry)))


def test_a_last_step_that_is_done_is_the_end(start, tmp_path):
    result = start(tmp_path / "it", callbacks=[Asks(6)])
    assert result.steps == 6


def test_a_finished_run_goes_on_if_it_is_made_longer(start, tmp_path):
    start(tmp_path / "it", save_strategy="steps", logging_steps=1)
    longer = go_on(tmp_path / "it", num_train_epochs=2)
    rates = [entry["learning_rate"] for entry in longer.history if "loss" in entry]
    assert longer.steps == 12
    assert rates[7:] == pytest.approx([1e-2 * (12 - step) / 12 for step in range(7, 12)])


def test_a_model_that_was_given_is_given_again(start, tmp_path):
    with pytest.raises(TrainingInterrupted):
        start(tmp_path / "it", callbacks=[Asks(2)])
    with pytest.raises(TrainError, match=r"BS736.*`model`"):
        train(resume=tmp_path / "it", quiet=True)


def test_the_folder_is_enough(files, model_folder, tmp_path, monkeypatch):
    """Started from another folder, with relative names and a spec that has changed since."""
    monkeypatch.chdir(tmp_path)
    for name in ("rows.jsonl", "small.share"):
        shutil.copy(files / name, tmp_path)
    given = {
        "spec": "small.share", "model": "tiny", "data": "rows.jsonl", "quiet": True, **SMALL,
        "logging_steps": 1,
    }  # fmt: skip
    whole = train(output_dir="whole", **given)
    with pytest.raises(TrainingInterrupted):
        train(output_dir="it", callbacks=[Asks(2)], **given)
    (tmp_path / "small.share").write_text("spec other")
    monkeypatch.chdir(files)
    parts = train(resume=tmp_path / "it", quiet=True)
    assert losses(parts) == losses(whole)
    # And so is what it was asked for.
    asked = tmp_path / "whole" / "run.json"
    assert json.loads(asked.read_text())["spec"] == SPEC
    again = train(config=asked, output_dir=tmp_path / "again", quiet=True)
    assert losses(again) == losses(whole)


def test_what_cannot_be_resumed(start, tmp_path):
    for name in ("nowhere", "."):
        with pytest.raises(TrainError, match=r"BS742.*run\.json"):
            train(resume=tmp_path / name)
    folder = tmp_path / "it"
    start(folder)
    with pytest.raises(TrainError, match=r"(?s)BS742.*begin anew"):
        go_on(folder)
    shutil.rmtree(folder)
    start(folder, save_strategy="steps", save_steps=2, save_total_limit=3)
    # As after a kill while it was saved: its last file is cut.
    state = folder / "checkpoint-6" / "trainer_state.json"
    state.write_text(state.read_text()[:-9])
    (folder / "checkpoint-4" / "adapter_model.safetensors").unlink()
    with pytest.raises(TrainError, match="BS743"):
        go_on(folder / "checkpoint-6")
    with pytest.raises(TrainError, match="BS743"):
        go_on(folder / "checkpoint-4")
    assert go_on(folder).steps == 6
    assert sorted(p.name for p in folder.glob("checkpoint-*")) == [
        "checkpoint-2", "checkpoint-4", "checkpoint-6"
    ]  # fmt: skip


def test_a_new_run_from_a_checkpoint(start, tmp_path):
    """The way to train on in another manner."""
    with pytest.raises(TrainingInterrupted):
        start(tmp_path / "it", callbacks=[Asks(4)], logging_steps=1)
    more = {"learning_rate": 1e-3, "logging_steps": 1}
    further = start(tmp_path / "further", spec=str(tmp_path / "it" / "checkpoint-4"), **more)
    assert further.steps == 6
    assert further.loss_first < start(tmp_path / "fresh", **more).loss_first


@pytest.mark.parametrize("several", [False, True])
def test_other_examples_or_weights_are_refused(start, files, tmp_path, several):
    """They were taken without a word, where the page promises the same bits."""
    rows = tmp_path / "rows.jsonl"
    shutil.copy(files / "rows.jsonl", rows)
    data = {"a": str(rows)} if several else rows
    with pytest.raises(TrainingInterrupted):
        start(tmp_path / "it", data=data, callbacks=[Asks(2)])
    other = tiny_model("llama")
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[3, 2] += 1e-3
    before = {path: path.read_bytes() for path in (tmp_path / "it").rglob("*") if path.is_file()}
    with pytest.raises(TrainError, match=r"BS732.*other weights"):
        go_on(tmp_path / "it", model=other)
    rows.write_text(rows.read_text().replace("abc", "abd", 1))
    with pytest.raises(TrainError, match=r"BS732.*other examples"):
        go_on(tmp_path / "it")
    assert all(path.read_bytes() == content for path, content in before.items())
    shutil.copy(files / "rows.jsonl", rows)
    assert go_on(tmp_path / "it").steps == 6
