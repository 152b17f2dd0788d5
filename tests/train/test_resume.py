"""Interrupted and gone on with is the same as not interrupted, bit for bit."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from bishare_dsl.diagnostics import BishareWarning
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer
from bishare_dsl.train import TrainError, TrainingInterrupted, train
from bishare_dsl.train.checkpoint import MANIFEST
from bishare_dsl.writing import digest_of
from tests.train.conftest import SMALL, SPEC, losses, values


class Asks(TrainerCallback):
    """Asks the run to stop while a step is being done."""

    def __init__(self, step, number=signal.SIGINT):
        self.step, self.number = step, number

    def on_step_begin(self, args, state, control, **_):
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(
    ("step", "more"),
    [
        (2, {}),
        (6, {}),  # the end of an epoch
        (8, {"packing": True, "per_device_train_batch_size": 1}),
        (5, {"logging_steps": 3, "gradient_checkpointing": True, "bf16": True}),
        (5, {"eval_split": 4, "eval_strategy": "epoch", "logging_strategy": "epoch"}),
        (3, {"eval_split": 4, "eval_steps": 3, "train_sampling_strategy": "group_by_length"}),
        (4, {"optim": "adafactor", "lr_scheduler_type": "cosine", "max_steps": 9}),
        (8, {"train_sampling_strategy": "group_by_length"}),
        (3, {"lr_of": {"B": "4x"}, "weight_decay": 0.1, "weight_decay_of": {"A": 0.0}}),
    ],
    ids=[
        "mid-epoch",
        "epoch",
        "packing",
        "bf16",
        "eval-epoch",
        "eval-steps",
        "adafactor",
        "lengths",
        "rates",
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
    parts = start(tmp_path / "parts", resume_from_checkpoint="last", **more)
    assert parts.steps == whole.steps > step
    assert losses(parts) == losses(whole)
    for name, tensor in values(whole).items():
        assert torch.equal(values(parts)[name], tensor), name
    log = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").open()]
    assert [(entry["step"], entry.get("loss")) for entry in log] == [
        (entry["step"], entry.get("loss")) for entry in parts.history
    ]


def test_a_checkpoint_of_an_epochs_last_step_is_of_the_epoch(start, tmp_path):
    """What is measured at the end of the epoch is in it, and is not measured again."""
    more = {"num_train_epochs": 2, "eval_split": 4, "eval_strategy": "epoch"}
    more |= {"save_strategy": "steps", "save_steps": 5}
    whole = start(tmp_path / "it", **more)
    first = tmp_path / "it" / "checkpoint-5"
    history = json.loads((first / "trainer_state.json").read_text())["log_history"]
    assert "eval_loss" in history[-1]
    assert losses(start(tmp_path / "it", resume_from_checkpoint=first, **more)) == losses(whole)


def test_dropout_is_drawn(start, files, tmp_path):
    """Otherwise the tests above would show less than they seem to."""
    dry = files / "dry.share"
    dry.write_text(SPEC.replace("dropout 0.2\n", ""))
    wet = start(tmp_path / "wet")
    assert losses(wet) != losses(start(tmp_path / "dry", spec=str(dry)))


def test_sigterm_stops_as_well(start, tmp_path):
    with pytest.raises(TrainingInterrupted, match=r"step 2 of 6; saved in .*checkpoint-2"):
        start(tmp_path / "it", callbacks=[Asks(2, signal.SIGTERM)])
    assert json.loads((tmp_path / "it" / "run.json").read_text())["status"] == "interrupted"


def test_the_second_time_stops_at_once(start, tmp_path):
    class Impatient(Asks):
        def on_substep_end(self, args, state, control, **_):
            if state.global_step + 1 == self.step:
                os.kill(os.getpid(), self.number)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        start(tmp_path / "it", callbacks=[Impatient(2)])
    assert not isinstance(caught.value, TrainingInterrupted)
    assert not list((tmp_path / "it").glob("*checkpoint*"))
    assert signal.getsignal(signal.SIGINT) is handler
    assert json.loads((tmp_path / "it" / "run.json").read_text())["status"] == "failed"


def test_a_last_step_that_is_done_is_the_end(start, tmp_path):
    result = start(tmp_path / "it", callbacks=[Asks(6)])
    assert result.steps == 6


@pytest.mark.parametrize("more", [{}, {"max_steps": 4}, {"num_train_epochs": 0.5}])
def test_a_finished_run_is_finished(start, tmp_path, more):
    more["save_strategy"] = "steps"
    first = start(tmp_path / "it", **more)
    again = start(tmp_path / "it", resume_from_checkpoint="last", **more)
    assert again.steps == first.steps
    assert all(torch.equal(values(again)[n], t) for n, t in values(first).items())


def test_from_an_earlier_checkpoint(start, tmp_path):
    more = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 3}
    first = start(tmp_path / "it", **more)
    names = {path.name for path in (tmp_path / "it").glob("checkpoint-*")}
    assert names == {"checkpoint-2", "checkpoint-4", "checkpoint-6"}
    again = start(tmp_path / "it", resume_from_checkpoint=tmp_path / "it" / "checkpoint-2", **more)
    assert {path.name for path in (tmp_path / "it").glob("checkpoint-*")} == names
    assert losses(again) == losses(first)


def test_into_another_folder(start, tmp_path):
    with pytest.raises(TrainingInterrupted):
        start(tmp_path / "old", callbacks=[Asks(2)])
    whole = start(tmp_path / "whole")
    there = start(tmp_path / "new", resume_from_checkpoint=tmp_path / "old" / "checkpoint-2")
    assert losses(there) == losses(whole)
    assert [path.name for path in (tmp_path / "old").glob("checkpoint-*")] == ["checkpoint-2"]
    with pytest.raises(TrainError, match="BS740"):
        start(tmp_path / "new", resume_from_checkpoint=tmp_path / "old" / "checkpoint-2")


def test_another_run_is_refused(start, files, tmp_path):
    with pytest.raises(TrainingInterrupted):
        start(tmp_path / "it", callbacks=[Asks(2)])
    changes = {
        "learning_rate": (2e-2, "learning_rate was 0.01 and is 0.02"),
        "seed": (1, "seed was 0 and is 1"),
        "data": (files / "others.jsonl", "the data is another"),
        "params": ({"r": 2}, "the adapter's plan is another"),
        "max_length": (16, "max_length was 32 and is 16"),
        "per_device_train_batch_size": (4, "effective batch was 4 and is 8"),
    }
    spec = files / "param.share"
    spec.write_text(SPEC.replace("target", "param r = 4\ntarget").replace("rank 4", "rank r"))
    for name, (value, said) in changes.items():
        more = {"spec": str(spec)} if name == "params" else {}
        with pytest.raises(TrainError, match="BS744") as caught:
            start(tmp_path / "it", resume_from_checkpoint="last", **more, **{name: value})
        assert said in str(caught.value)
    # What decides nothing may change.
    start(tmp_path / "it", resume_from_checkpoint="last", logging_steps=2, save_total_limit=1)


def test_a_batch_that_is_divided_otherwise(start, tmp_path):
    with pytest.raises(TrainingInterrupted):
        start(tmp_path / "it", callbacks=[Asks(2)], logging_steps=1)
    whole = start(tmp_path / "whole", logging_steps=1)
    otherwise = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    with pytest.warns(match=r"BS745.*1 processes with 2 x 2.*1 processes with 4 x 1"):
        result = start(tmp_path / "it", resume_from_checkpoint="last", logging_steps=1, **otherwise)
    assert result.steps == 6
    for (_, here, *_), (_, there, *_) in zip(losses(result)[:6], losses(whole)[:6], strict=True):
        assert here == pytest.approx(there, rel=0.05)


def test_the_folder_is_enough(files, model_folder, tmp_path, monkeypatch):
    """Started from another folder, with relative names and a spec that has changed since."""
    monkeypatch.setattr("bishare_dsl.train.run.draw_curve", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    for name in ("rows.jsonl", "small.share"):
        shutil.copy(files / name, tmp_path)
    given = {
        "spec": "small.share", "model": "tiny", "data": "rows.jsonl", "quiet": True, **SMALL,
        "lr_of": {"B": "2x"}, "logging_steps": 1,
    }  # fmt: skip
    whole = train(output_dir="whole", **given)
    with pytest.raises(TrainingInterrupted):
        train(output_dir="it", callbacks=[Asks(2)], **given)
    (tmp_path / "small.share").write_text("spec other")
    monkeypatch.chdir(files)
    parts = train(resume=tmp_path / "it", quiet=True)
    assert losses(parts) == losses(whole)
    for name, tensor in values(whole).items():
        assert torch.equal(values(parts)[name], tensor), name


def test_a_model_that_was_given_is_given_again(start, tmp_path):
    with pytest.raises(TrainingInterrupted):
        start(tmp_path / "it", callbacks=[Asks(2)])
    whole = start(tmp_path / "whole")
    given = {"model": tiny_model("llama"), "tokenizer": tiny_tokenizer(), "quiet": True}
    assert losses(train(resume=tmp_path / "it" / "checkpoint-2", **given)) == losses(whole)
    with pytest.raises(TrainError, match=r"BS736.*`model`"):
        train(resume=tmp_path / "it", quiet=True)


def test_a_folder_that_has_no_run(tmp_path):
    for name in ("nowhere", "."):
        with pytest.raises(TrainError, match=r"BS742.*run\.json"):
            train(resume=tmp_path / name)


@pytest.mark.parametrize("more", [{"num_train_epochs": 2}, {"max_steps": 9}])
def test_a_finished_run_goes_on_if_it_is_made_longer(start, tmp_path, more):
    start(tmp_path / "it", save_strategy="steps", logging_steps=1, warmup_steps=None)
    given = {"model": tiny_model("llama"), "tokenizer": tiny_tokenizer(), "quiet": True}
    steps = more.get("max_steps", 12)
    with pytest.warns(BishareWarning, match=rf"BS755.*6 steps and has {steps}"):
        longer = train(resume=tmp_path / "it", **given, **more)
    assert longer.steps == steps
    rates = [entry["learning_rate"] for entry in longer.history if "loss" in entry]
    assert rates[6] == pytest.approx(1e-2 * (steps - 6) / steps)
    assert [entry["step"] for entry in longer.history if "loss" in entry] == [*range(1, steps + 1)]
    with pytest.raises(TrainError, match="BS744"):
        train(resume=tmp_path / "it", max_steps=3, **given)


def test_what_cannot_be_resumed(start, tmp_path):
    with pytest.raises(TrainError, match="BS742"):
        start(tmp_path / "none", resume_from_checkpoint="last")
    start(tmp_path / "it", save_strategy="steps", save_only_model=True)
    with pytest.raises(TrainError, match="BS746"):
        start(tmp_path / "it", resume_from_checkpoint="last", save_only_model=True)
    with pytest.raises(TrainError, match=r"BS732.*begins anew"):
        start(tmp_path / "it", resume_from_checkpoint="last", force=True)


def test_a_new_run_from_a_checkpoint(start, tmp_path):
    """The way to train on in another manner."""
    with pytest.raises(TrainingInterrupted):
        start(tmp_path / "it", callbacks=[Asks(4)], logging_steps=1)
    further = start(
        tmp_path / "further",
        spec=str(tmp_path / "it" / "checkpoint-4"),
        learning_rate=1e-3,
        logging_steps=1,
    )
    assert further.steps == 6
    fresh = start(tmp_path / "fresh", learning_rate=1e-3, logging_steps=1)
    assert further.loss_first < fresh.loss_first


def test_the_base_is_in_no_checkpoint(start, tmp_path):
    result = start(
        tmp_path / "it", save_strategy="steps", model=tiny_model("llama", vocab_size=4096)
    )
    embedding = result.model.get_input_embeddings().weight
    size = sum(path.stat().st_size for path in (tmp_path / "it" / "checkpoint-6").iterdir())
    assert size < embedding.numel() * embedding.element_size() / 4


def seal(folder: Path) -> None:
    """Make the manifest agree with the files again."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for name in manifest["files"]:
        manifest["files"][name] = digest_of((folder / name).read_bytes()).model_dump()
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("state.json", ["division"], {}),
        ("state.json", ["division", "processes"], "one"),
        ("state.json", ["processes", 0], None),
        ("state.json", ["processes", 0, "generators", "python"], [3]),
        ("state.json", ["processes", 0, "generators", "torch"], 3),
        ("state.json", ["optimizer", "groups"], []),
        ("state.json", ["optimizer", "groups", 0, "params"], ["nobody"]),
        ("state.json", ["optimizer", "groups", 0, "weight_decay"], "x"),
        ("state.json", ["optimizer", "state", "a.q_proj.B", "exp_avg"], {}),
        ("state.json", ["optimizer", "state", "a.q_proj.B"], {}),
        ("state.json", ["processes", 0, "generators", "python", 1], [-1] * 625),
        ("state.json", ["schedule"], 3),
        ("state.json", ["schedule", "base_lrs"], 3),
        ("state.json", ["losses"], None),
        ("trainer_state.json", ["global_step"], 4),
        ("trainer_state.json", ["log_history"], "nothing"),
        ("trainer_state.json", ["stateful_callbacks"], None),
        ("checkpoint.json", ["run"], []),
        ("checkpoint.json", ["files"], {"../../secret": {"bytes": 0, "sha256": ""}}),
    ],
)
def test_a_checkpoint_that_was_tampered_with(start, tmp_path, name, path, value):
    start(tmp_path / "it", save_strategy="steps", save_steps=3)
    folder = tmp_path / "it" / "checkpoint-3"
    shutil.rmtree(tmp_path / "it" / "checkpoint-6")
    content = json.loads((folder / name).read_text())
    part = content
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    (folder / name).write_text(json.dumps(content))
    if name != MANIFEST:
        seal(folder)
    with pytest.raises(TrainError, match="BS743"):
        start(tmp_path / "it", resume_from_checkpoint="last")
