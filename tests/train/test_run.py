import json
import math
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml
from transformers import TrainerCallback

from bishare_dsl import language
from bishare_dsl.diagnostics import BishareError, DataError, PlanError
from bishare_dsl.models import load, source
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.train import TrainError, prepare, train
from bishare_dsl.train.folder import check_new, hold
from bishare_dsl.train.run import hear_signals
from bishare_dsl.train.trainer import AdapterTrainer
from tests.support.reach import out_of_reach
from tests.train.conftest import SMALL, losses, saved, values


def test_a_run_from_end_to_end(start, tmp_path):
    base = tiny_model("llama")
    before = {name: parameter.clone() for name, parameter in base.named_parameters()}
    folder = tmp_path / "deep" / "out"
    result = start(
        folder, model=base, num_train_epochs=3, save_strategy="steps", save_steps=4,
        eval_split=4, report_to="tensorboard", logging_steps=1,
    )  # fmt: skip
    assert result.loss_last < result.loss_first
    assert (result.steps, result.epochs, result.batch) == (15, 3.0, 4)
    assert result.eval_loss == [h["eval_loss"] for h in result.history if "eval_loss" in h][-1]
    data = result.tasks[0].data
    report = data["train"]
    assert (report.rows, data["eval"].rows) == (20, 4)
    assert result.tokens == 3 * report.tokens
    # The folder is the adapter's, and a checkpoint holds it and not the base.
    assert result.model is base
    assert not base.training
    for name, tensor in values(result).items():
        assert torch.equal(saved(folder)[name], tensor)
    names = {path.name for path in folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= names
    assert {"checkpoint-12", "checkpoint-15", "run.json", "trainer_state.json", "runs"} <= names
    stored = (folder / "checkpoint-15" / "adapter_model.safetensors").stat().st_size
    assert stored < 4 * sum(t.numel() for t in values(result).values()) + 10_000
    assert next((folder / "runs").glob("*/events*")).stat().st_size > 1000
    for name, parameter in before.items():
        assert torch.equal(dict(base.named_parameters())[name], parameter)
    said = str(result)
    assert "15 of 4 examples, 3.00 epochs" in said
    assert f"bishare merge {folder}" in said
    json.dumps(result.as_dict())


def test_evaluating_changes_nothing_in_training(start, files, tmp_path):
    alone = start(tmp_path / "alone", logging_steps=1)
    more = {"eval_data": files / "others.jsonl", "eval_steps": 1, "eval_on_start": True}
    evaluated = start(tmp_path / "evaluated", logging_steps=1, **more)
    assert sum("eval_loss" in entry for entry in evaluated.history) == 7
    kept = [entry for entry in losses(evaluated) if entry[1] is not None]
    assert kept == [entry for entry in losses(alone) if entry[1] is not None]


def test_the_best_adapter_is_kept(start, files, tmp_path):
    class Worsens(TrainerCallback):
        @torch.no_grad()
        def on_step_begin(self, args, state, control, model=None, **_):
            if state.global_step >= 3:
                for tensor in model.bishare.tensors().values():
                    tensor.add_(1)

    result = start(
        tmp_path / "it", load_best_model_at_end=True, save_strategy="steps", save_steps=1,
        save_total_limit=1, eval_data=files / "others.jsonl", eval_steps=1, callbacks=[Worsens()],
    )  # fmt: skip
    held_out = {h["step"]: h["eval_loss"] for h in result.history if "eval_loss" in h}
    best = min(held_out, key=held_out.get)
    assert best < max(held_out) == 6
    assert result.eval_loss == held_out[best]
    kept = sorted(path.name for path in (tmp_path / "it").glob("checkpoint-*"))
    assert kept == [f"checkpoint-{best}", "checkpoint-6"]
    stored = saved(tmp_path / "it" / f"checkpoint-{best}")
    assert all(torch.equal(stored[name], tensor) for name, tensor in values(result).items())


def test_an_adapter_whose_held_out_loss_is_not_finite_is_never_the_best(
    start, files, tmp_path, monkeypatch
):
    loss_of = AdapterTrainer.compute_loss

    def broken(self, model, *arguments, **keywords):
        found = loss_of(self, model, *arguments, **keywords)
        if model.training or self.state.global_step not in (1, 4, 6):
            return found
        loss, outputs = found
        return loss * float("nan"), outputs

    monkeypatch.setattr(AdapterTrainer, "compute_loss", broken)
    result = start(
        tmp_path / "it", load_best_model_at_end=True, save_strategy="steps", save_steps=1,
        eval_data=files / "others.jsonl", eval_steps=1,
    )  # fmt: skip
    held_out = {h["step"]: h["eval_loss"] for h in result.history if "eval_loss" in h}
    assert math.isnan(held_out[1])
    assert result.eval_loss == min(held_out[step] for step in (2, 3, 5))


def test_an_adapter_is_trained_further(start, tmp_path):
    first = start(tmp_path / "first", logging_steps=1)
    again = start(tmp_path / "again", spec=str(tmp_path / "first"), logging_steps=1)
    assert again.loss_first == pytest.approx(first.loss_last, rel=0.1)
    assert again.loss_first < first.loss_first
    with pytest.raises(BishareError, match="BS401"):
        start(tmp_path / "live", model=first.model)


def test_one_adapter_learns_from_all_files(start, files, tmp_path):
    made = start(tmp_path / "both", data=str(files), together=True, logging_steps=1)
    assert [(task.rows, task.folder) for task in made.tasks] == [(30, str(tmp_path / "both"))]
    joined = tmp_path / "joined.jsonl"
    names = ("others.jsonl", "rows.jsonl")
    joined.write_text("\n".join((files / name).read_text() for name in names))
    assert losses(made) == losses(start(tmp_path / "one", data=joined, logging_steps=1))
    bad = tmp_path / "data" / "bad.jsonl"
    bad.parent.mkdir()
    bad.write_text('{"prompt": "a"}\n')
    with pytest.raises(DataError, match=r"BS711.*bad\.jsonl:1: `completion` is missing"):
        start(tmp_path / "no", data=[str(files / "rows.jsonl"), str(bad)], together=True)


class Spoils(TrainerCallback):
    """Lets the loss or the gradient of a step be no number."""

    def __init__(self, step, where):
        self.step, self.where = step, where

    def on_step_begin(self, args, state, control, model=None, **_):
        if state.global_step + 1 == self.step:
            parameter = next(p for p in model.parameters() if p.requires_grad)
            if self.where == "loss":  # As after an update that was too large.
                with torch.no_grad():
                    parameter.fill_(math.inf)
            else:
                parameter.register_hook(lambda gradient: gradient * math.nan)

    def on_pre_optimizer_step(self, args, state, control, **_):
        assert state.global_step + 1 < self.step, "a bad step is applied"


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_no_number_stops_the_run(start, tmp_path, where):
    more = {"save_strategy": "steps", "save_steps": 2}
    with pytest.raises(TrainError, match="BS750") as caught:
        start(tmp_path / "it", callbacks=[Spoils(4, where)], **more)
    said = str(caught.value)
    assert "the gradient of step 4 is nan: it is not applied" in said
    assert f"`{tmp_path / 'it' / 'checkpoint-2'}` is the last checkpoint" in said
    assert not (tmp_path / "it" / "adapter_config.json").exists()
    with pytest.raises(TrainError, match=r"BS750.*step 1 .*no checkpoint exists yet"):
        start(tmp_path / "other", callbacks=[Spoils(1, where)])


def test_everything_cheap_is_checked_first(files, tmp_path, monkeypatch, model_folder):
    def refuse(*_, **__):
        raise AssertionError("weights are loaded")

    monkeypatch.setattr("bishare_dsl.train.prepare.load_model", refuse)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n')
    good = {
        "spec": str(files / "small.share"), "model": str(model_folder),
        "data": files / "rows.jsonl", "output_dir": tmp_path / "out", "quiet": True, **SMALL,
    }  # fmt: skip
    wide = tmp_path / "wide.share"
    wide.write_text("spec w target q_proj, v_proj share a per layer rank 2")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "adapter_config.json").write_text("{}")
    for name, value, error, code in (
        ("learning_rate", "x", TrainError, "BS731"),
        ("bf16_full_eval", "nope", TrainError, "BS731"),
        ("output_dir", tmp_path / "taken", TrainError, "BS740"),
        ("spec", str(wide), PlanError, "BS305"),
        ("model", "llama-7b", BishareError, "BS512"),
        ("data", bad, DataError, "BS711"),
        ("eval_split", 0.001, DataError, "BS724"),
    ):
        with pytest.raises(error, match=code):
            train(**{**good, name: value})
    with pytest.raises(AssertionError, match="weights are loaded"):
        train(**good)
    assert not (tmp_path / "out").exists()


def test_a_run_is_not_overwritten(start, tmp_path):
    folder = tmp_path / "it"
    start(folder, save_strategy="steps")
    (folder / "mine.txt").write_text("mine")
    before = {path.name for path in folder.iterdir()}
    with pytest.raises(TrainError, match=r"(?s)BS740.*--resume"):
        start(folder)
    assert before == {path.name for path in folder.iterdir()}


def test_a_run_that_left_no_checkpoint_is_begun_anew(start, tmp_path):
    with pytest.raises(TrainError, match="BS750"):
        start(tmp_path, callbacks=[Spoils(2, "gradient")])
    (tmp_path / "checkpoint-1").mkdir()  # As after a kill while it was saved.
    (tmp_path / "mine.txt").write_text("mine")
    assert start(tmp_path, seed=7).steps == 6
    assert yaml.safe_load((tmp_path / "run.json").read_text())["seed"] == 7
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert not (tmp_path / "checkpoint-1").exists()


def test_what_is_no_run_is_not_touched(start, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "file").write_text("")
    for name in ("adapter", "file"):
        with pytest.raises(TrainError, match="BS740"):
            start(tmp_path / name)
    assert (tmp_path / "adapter" / "adapter_config.json").read_text() == "{}"
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.yaml").write_text("seed: 0")
    start(tmp_path / "notes")


def test_neither_a_base_nor_checkpoints_of_another_trainer_are_touched(start, tmp_path):
    base, other = tmp_path / "base", tmp_path / "trl" / "checkpoint-500"
    tiny_model("llama").save_pretrained(base)
    other.mkdir(parents=True)
    (other / "model.safetensors").write_bytes(b"weights")
    for folder in (base, other.parent):
        before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        with pytest.raises(TrainError, match=r"BS740(.|\n)*`--output_dir`"):
            start(folder)
        assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_two_at_once_in_one_folder(start, tmp_path):
    """The second is refused, whatever it asks for and however far it is; the first is not disturbed."""
    folder = tmp_path / "it"

    class Second(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            for begins in (
                lambda: check_new(folder, resumes=False),
                lambda: check_new(folder, resumes=True),
                lambda: hold(folder, {}, None).__enter__(),  # Both were checked before.
            ):
                # A thread that has the lock has it still.
                with ThreadPoolExecutor() as other, pytest.raises(TrainError, match="BS741"):
                    other.submit(begins).result()

    more = {"save_strategy": "steps", "save_steps": 2}
    start(folder, callbacks=[Second()], **more)
    assert yaml.safe_load((folder / "run.json").read_text())["save_steps"] == 2
    assert (folder / "adapter_config.json").is_file()


def test_a_name_is_resolved_and_a_spec_read_once(start, files, model_folder, tmp_path, monkeypatch):
    seen = []
    resolve, read_file = source.resolve, language.read_file

    def resolving(name):
        seen.append(name if isinstance(name, str) else "known")
        return resolve(name)

    monkeypatch.setattr(
        language, "read_file", lambda path: seen.append(path.name) or read_file(path)
    )
    for module in (prepare, load):
        monkeypatch.setattr(module, "resolve", resolving)
    start(tmp_path / "it", model=str(model_folder), tokenizer=None)

    assert seen.count(str(model_folder)) == seen.count("small.share") == 1


def test_quiet_and_not(start, tmp_path, capsys):
    start(tmp_path / "quiet")
    assert capsys.readouterr() == ("", "")
    start(tmp_path / "loud", quiet=False, save_strategy="steps")
    out, err = capsys.readouterr()
    assert out.startswith(
        "{'loss': '"
    )  # As transformers writes its log; the command sends it to stderr.
    for said in (
        "encoding 24 rows",
        "24 rows (prompt-completion)",
        "6 steps of 4 examples",
        "trainable params: ",
        "of the trained parameters are shared",
        " 6/6 [",
    ):
        assert said in err


def test_a_folder_that_cannot_be_written_is_told_before_the_weights_are_loaded(start, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TrainError, match=r"BS747.*Not a directory"):
        start(tmp_path / "file" / "it", model="nowhere")


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_a_folder_that_is_out_of_reach_is_an_error_with_a_code(start, tmp_path):
    (tmp_path / "closed").mkdir()
    said = r"BS747.*Permission denied"
    with out_of_reach(tmp_path / "closed"), pytest.raises(TrainError, match=said):
        start(tmp_path / "closed" / "it")


def test_a_model_in_place_of_the_spec_is_refused():
    with pytest.raises(TypeError, match="the model is the second argument"):
        train(tiny_model("llama"), "lora", "rows.jsonl", "out")


def test_a_folder_with_the_name_of_a_shipped_spec_is_asked_about(start, tmp_path, monkeypatch):
    """A run named `lora` would be trained further in place of the spec."""
    monkeypatch.chdir(tmp_path)
    start(Path("lora"), max_steps=1)
    said = r"BS732(?s:.*)`./lora` for the folder, or `lora.share` for the spec"
    with pytest.raises(TrainError, match=said):
        start(Path("out"), spec="lora", max_steps=1)
    assert start(Path("further"), spec="./lora", max_steps=1).model.bishare.plan.spec == "small"
    assert start(Path("shipped"), spec="lora.share", max_steps=1).model.bishare.plan.spec == "lora"


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("tells", [True, False])
def test_the_first_signal_is_a_request_and_the_second_is_not(which, tells, capfd):
    heard = []
    before = signal.signal(which, lambda *_: heard.append(which))
    try:
        with hear_signals(tells) as requested:
            assert not requested()
            os.kill(os.getpid(), which)
            assert requested()
            assert heard == []
            os.kill(os.getpid(), which)
            assert heard == [which]
        assert ("stopping after this step" in (said := capfd.readouterr().err)) is tells
        assert tells or said == ""
    finally:
        signal.signal(which, before)


def test_afterwards_signals_are_as_before():
    before = [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)]

    def fails():
        with hear_signals(False):
            assert signal.getsignal(signal.SIGINT) is not before[0]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)] == before


def test_in_another_thread_nothing_changes():
    before = signal.getsignal(signal.SIGINT)
    found = []

    def other():
        with hear_signals(False):
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert found == [before]
