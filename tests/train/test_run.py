import json
import math
import os

import pytest
import torch
from safetensors import safe_open
from transformers import TrainerCallback

from bishare_dsl import compile_spec, load_adapter
from bishare_dsl.adapter.files import read_adapter
from bishare_dsl.diagnostics import AdapterError, BishareError, BishareWarning, DataError, PlanError
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.train import TrainError, train
from bishare_dsl.train.curve import draw_curve
from tests.train.conftest import SMALL, SPEC, losses, values

IDS = torch.arange(3, 20)[None]


def test_a_run_from_end_to_end(start, tmp_path, monkeypatch):
    monkeypatch.setattr("bishare_dsl.train.run.draw_curve", draw_curve)
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
    report = result.data["train"]
    assert (report.rows, result.data["eval"].rows) == (20, 4)
    assert result.tokens == 3 * report.tokens
    assert result.peak_memory > 2**20
    # The folder is the adapter's.
    loaded = load_adapter(folder, tiny_model("llama"))
    assert not result.model.training
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, result.model(IDS).logits)
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "README.md", "adapter_model.safetensors", "adapter_config.json", "spec.share",
        "checkpoint-12", "checkpoint-15", "run.json", "log.jsonl", "loss.png", "runs",
    }  # fmt: skip
    log = [json.loads(line) for line in (folder / "log.jsonl").open()]
    assert log == json.loads(json.dumps(result.history))
    assert {"loss", "grad_norm", "learning_rate", "tokens", "tokens_per_second"} <= log[0].keys()
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert next((folder / "runs").glob("*/events*")).stat().st_size > 1000
    # The base is as it was.
    for name, parameter in before.items():
        assert torch.equal(dict(result.model.named_parameters())[name], parameter)
    assert result.model.config.use_cache
    said = str(result)
    assert "15 of 4 examples, 3.00 epochs" in said
    assert f"bishare merge {folder}" in said
    json.dumps(result.as_dict())


def test_the_record_of_a_run(start, files, tmp_path):
    start(tmp_path / "it", seed=7, packing=True)
    record = json.loads((tmp_path / "it" / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["spec"] == {"name": "small", "params": {}}
    assert record["seed"] == record["arguments"]["seed"] == 7
    assert record["data"]["train"]["digest"].startswith("sha256:")
    assert record["settings"]["packing"]
    assert record["batch"] == {
        "effective": 4, "processes": 1, "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
    }  # fmt: skip
    assert record["versions"]["torch"] == torch.__version__
    assert record["command"]
    assert record["started"] <= record["ended"]
    assert record["result"]["steps"] == record["step"]
    assert record["machine"]["device"] == "cpu"


def test_the_seed_draws_the_adapter(start, tmp_path):
    for seed in (0, 5):
        start(tmp_path / str(seed), seed=seed, learning_rate=0.0)
        fresh = compile_spec(
            str(tmp_path / str(seed) / "spec.share"), tiny_model("llama"), seed=seed
        )
        stored = read_adapter(tmp_path / str(seed))
        assert stored.config.seed == seed
        for name, tensor in fresh.bishare.tensors().items():
            assert torch.equal(stored.tensors()[name], tensor)


def test_the_same_seed_the_same_run(start, tmp_path):
    torch.manual_seed(1)
    one = start(tmp_path / "one", logging_steps=1)
    torch.manual_seed(2)
    assert losses(start(tmp_path / "two", logging_steps=1)) == losses(one)
    assert losses(start(tmp_path / "three", logging_steps=1, seed=1)) != losses(one)


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
    assert [path.name for path in (tmp_path / "it").glob("checkpoint-*")] == [f"checkpoint-{best}"]
    stored = read_adapter(tmp_path / "it" / f"checkpoint-{best}").tensors()
    assert all(torch.equal(stored[name], tensor) for name, tensor in values(result).items())


def test_accumulation_changes_only_rounding(start, tmp_path):
    found = []
    for size, steps in ((1, 4), (4, 1)):
        more = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        # Dropout is drawn for other shapes.
        spec = tmp_path / "dry.share"
        spec.write_text(SPEC.replace("dropout 0.2\n", ""))
        result = start(tmp_path / str(size), spec=str(spec), logging_steps=1, **more)
        found.append([entry["loss"] for entry in result.history if "loss" in entry])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_each_way_to_the_loss_gives_the_models_own(start, tmp_path, monkeypatch):
    """The model's, of the logits that are learned; TRL's fused head; the model's, of all logits."""
    found = [start(tmp_path / "sparse", logging_steps=1)]
    monkeypatch.setattr("bishare_dsl.train.trainer.takes_only_learned", lambda _: False)
    found.append(start(tmp_path / "fused", logging_steps=1))
    assert "mean_token_accuracy" in found[1].history[0]
    monkeypatch.setattr("bishare_dsl.train.trainer.fused_head_is_right", lambda _: False)
    found.append(start(tmp_path / "plain", logging_steps=1))
    plain = losses(found[2])[:6]
    for other in found[:2]:
        assert [x[1:4] for x in losses(other)[:6]] != [x[1:4] for x in plain]
        for here, there in zip(losses(other)[:6], plain, strict=True):
            assert here[1:4] == pytest.approx(there[1:4], rel=1e-4)


def test_an_adapted_model_is_trained_further(start, tmp_path):
    first = start(tmp_path / "first", logging_steps=1)
    again = start(tmp_path / "again", model=first.model, spec=None, logging_steps=1)
    assert again.loss_first < first.loss_first
    with pytest.raises(TrainError, match=r"BS737.*`small`"):
        start(tmp_path / "no", model=first.model)
    with pytest.raises(TrainError, match=r"BS732.*params"):
        start(tmp_path / "no", model=first.model, spec=None, params={"r": 2})


def test_an_adapter_is_trained_further(start, tmp_path):
    first = start(tmp_path / "first", logging_steps=1)
    again = start(tmp_path / "again", spec=str(tmp_path / "first"), logging_steps=1)
    assert again.loss_first == pytest.approx(
        start(tmp_path / "live", model=first.model, spec=None, logging_steps=1).loss_first
    )


def test_a_compact_adapter_is_not_trained(start, tmp_path):
    spec = tmp_path / "vb.share"
    spec.write_text(
        "spec vb target q_proj share a per model rank 2 "
        "via VectorBank(vectors = 8, length = 8, top_k = 2) start nonzero"
    )
    model = compile_spec(spec, tiny_model("llama"))
    model.bishare.save_pretrained(tmp_path / "small", compact=True)
    with pytest.raises(AdapterError, match="BS637"):
        start(tmp_path / "it", spec=str(tmp_path / "small"))


class Spoils(TrainerCallback):
    """Lets something be infinite from a step on."""

    def __init__(self, step, where):
        self.step, self.where = step, where

    def on_step_begin(self, args, state, control, model=None, **_):
        if state.global_step + 1 == self.step and self.where == "loss":
            # As after an update that was too large.
            with torch.no_grad():
                next(p for p in model.parameters() if p.requires_grad).fill_(math.inf)

    def on_pre_optimizer_step(self, args, state, control, **_):
        assert state.global_step + 1 < self.step, "a bad step is applied"


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_that_is_no_number_stops_the_run(start, tmp_path, where):
    seen = {}

    class Watches(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **_):
            tensors = model.bishare.tensors().items()
            seen[state.global_step] = {name: t.detach().clone() for name, t in tensors}
            if where == "gradient" and state.global_step + 1 == 4:
                parameter = next(p for p in model.parameters() if p.requires_grad)
                parameter.register_hook(lambda gradient: gradient * math.nan)

    with pytest.raises(TrainError, match="BS750") as caught:
        start(tmp_path / "it", callbacks=[Watches(), Spoils(4, where)], save_strategy="steps")
    # The parameters of step 3 gave the bad loss; a gradient says nothing against them.
    good = 2 if where == "loss" else 3
    said = str(caught.value)
    assert f"the {where} of step 4 is nan" in said
    assert f"as of step {good} is kept in `{tmp_path / 'it'}`" in said
    stored = read_adapter(tmp_path / "it").tensors()
    for name, tensor in stored.items():
        assert torch.equal(tensor, seen[good][name])
    record = json.loads((tmp_path / "it" / "run.json").read_text())
    assert (record["status"], record["step"]) == ("stopped", 3)


def test_a_first_step_that_is_no_number_leaves_nothing(start, tmp_path):
    with pytest.raises(TrainError, match=r"BS750.*the loss of step 1 .*no step before it was good"):
        start(tmp_path / "it", callbacks=[Spoils(1, "loss")])
    assert not (tmp_path / "it" / "adapter_config.json").exists()


def test_everything_cheap_is_checked_first(files, tmp_path, monkeypatch, model_folder):
    def refuse(*_, **__):
        raise AssertionError("weights are loaded")

    monkeypatch.setattr("bishare_dsl.train.run.load_model", refuse)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n')
    good = {
        "spec": str(files / "small.share"), "model": str(model_folder),
        "data": files / "rows.jsonl", "output_dir": tmp_path / "out", "quiet": True, **SMALL,
    }  # fmt: skip
    wide = tmp_path / "wide.share"
    wide.write_text("spec w target q_proj, v_proj share a per layer rank 2")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "run.json").write_text("{}")
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
    assert not (tmp_path / "out" / "run.json").exists()


def test_what_is_missing(start, files, tmp_path):
    with pytest.raises(TrainError, match=r"BS736.*`spec`"):
        start(tmp_path / "it", spec=None)
    with pytest.raises(TrainError, match="BS805"):
        start(tmp_path / "it", tokenizer=None)
    model = compile_spec(files / "small.share", tiny_model("llama"))
    model.lm_head.requires_grad_(True)
    with pytest.raises(TrainError, match=r"BS739.*1 parameters.*`lm_head.weight`"):
        start(tmp_path / "it", model=model, spec=None)


def test_a_run_is_not_overwritten(start, tmp_path):
    folder = tmp_path / "it"
    start(folder, save_strategy="steps")
    (folder / "mine.txt").write_text("mine")
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(TrainError, match=r"BS740.*\(finished\)"):
        start(folder)
    (folder / "runs").mkdir()
    start(folder, force=True, num_train_epochs=0.5)
    after = sorted(path.name for path in folder.iterdir())
    assert set(before) - set(after) == {"checkpoint-6"}
    assert (folder / "mine.txt").read_text() == "mine"


def test_what_is_no_run_is_not_touched(start, tmp_path):
    compile_spec("lora", tiny_model("llama")).bishare.save_pretrained(tmp_path / "adapter")
    (tmp_path / "file").write_text("")
    for name in ("adapter", "file"):
        with pytest.raises(TrainError, match="BS741"):
            start(tmp_path / name, force=True)
    assert read_adapter(tmp_path / "adapter")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "train.yaml").write_text("seed: 0")
    start(tmp_path / "notes")


def test_what_is_worth_a_warning(start, tmp_path, monkeypatch):
    monkeypatch.setattr("bishare_dsl.train.check.can_draw", lambda: False)
    with pytest.warns(BishareWarning) as caught:
        start(tmp_path / "it", warmup_steps=100)
    said = [str(warning.message) for warning in caught]
    assert ["BS752" in text for text in said] == [True, False]
    assert "6 steps, and the learning rate warms up over 100" in said[0]
    assert "beyond 0.0005 of 0.01" in said[0]
    assert "BS753" in said[1]


def test_a_warning_is_told_once(start, tmp_path):
    """A spec is read once, and nothing is muted to be told once."""
    text = "spec s\ntarget q_proj, v_proj\nshare a where q_proj per kind rank 4\n"
    with pytest.warns(BishareWarning) as caught:
        result = start(tmp_path / "it", spec=text)
    assert ["BS308" in str(warning.message) for warning in caught] == [True]
    assert result.model.bishare.spec_text == text


def test_a_name_is_resolved_and_a_spec_read_once(start, files, model_folder, tmp_path, monkeypatch):
    from bishare_dsl import language
    from bishare_dsl.models import load, source
    from bishare_dsl.train import check

    seen = []
    resolve, read_file = source.resolve, language.read_file

    def resolving(name):
        seen.append(name if isinstance(name, str) else "known")
        return resolve(name)

    monkeypatch.setattr(
        language, "read_file", lambda path: seen.append(path.name) or read_file(path)
    )
    for module in (check, load):
        monkeypatch.setattr(module, "resolve", resolving)
    start(tmp_path / "it", model=str(model_folder), tokenizer=None)

    assert seen.count(str(model_folder)) == seen.count("small.share") == 1


def test_a_disk_that_is_full(start, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    class Fills(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 2:
                monkeypatch.setattr("bishare_dsl.train.checkpoint.write_state", full)

    with pytest.raises(TrainError, match=r"BS747.*checkpoint-3.*No space left"):
        start(tmp_path / "it", callbacks=[Fills()], save_strategy="steps", save_steps=1)
    names = sorted(path.name for path in (tmp_path / "it").glob("*checkpoint*"))
    assert names == ["checkpoint-1", "checkpoint-2"]


def test_memory_that_is_not_enough(start, tmp_path):
    class Fills(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    with pytest.raises(
        TrainError, match=r"(?s)BS751.*CUDA out of memory\n.*gradient_checkpointing"
    ):
        start(tmp_path / "it", callbacks=[Fills()])


def test_optimizers_that_cannot_be_made(start, tmp_path):
    for more in (
        {"optim": "galore_adamw"},
        {"optim": "apollo_adamw"},
        {"lr_scheduler_type": "cosine_with_min_lr"},
    ):
        with pytest.raises(TrainError, match="BS732"):
            start(tmp_path / "it", force=True, **more)


def test_quiet_and_not(start, tmp_path, capsys):
    start(tmp_path / "quiet")
    assert capsys.readouterr() == ("", "")
    start(tmp_path / "loud", quiet=False, save_strategy="steps")
    out, err = capsys.readouterr()
    assert out == ""
    for said in (
        "encoding 24 rows",
        "24 rows (prompt-completion)",
        "6 steps of 4 examples: 2 at once, on 1 device, 2 times",
        "trainable params: ",
        "step 1/6 · loss ",
        "tokens/s",
        "step 6/6 · checkpoint saved",
    ):
        assert said in err


def test_a_model_is_left_as_it_was_found(start, tmp_path):
    model = tiny_model("llama")
    forward = model.forward
    start(tmp_path / "it", model=model, bf16=True)
    assert model.forward == forward
    assert "forward" not in vars(model)
    assert model.config.use_cache
    assert not hasattr(model, "_is_accelerate_prepared")


def test_checkpoints_hold_no_pickle(start, tmp_path):
    start(tmp_path / "it", save_strategy="steps")
    suffixes = {path.suffix for path in (tmp_path / "it" / "checkpoint-6").iterdir()}
    assert suffixes == {".json", ".safetensors", ".md", ".share"}
    with safe_open(tmp_path / "it" / "checkpoint-6" / "state.safetensors", "pt") as file:
        assert any(name.endswith("exp_avg") for name in file.keys())  # noqa: SIM118


def test_force_removes_what_a_run_has_written_and_nothing_else(start, tmp_path):
    folder = tmp_path / "it"
    start(folder)
    (folder / "README.md").write_text("edited")
    for name in ("other/notes.txt", "Nov25_host/events.out.tfevents.1"):
        (folder / "runs" / name).parent.mkdir(parents=True)
        (folder / "runs" / name).write_text("mine")
    start(folder, force=True)
    assert (folder / "README.md").read_text() == "edited"
    assert [str(path.relative_to(folder)) for path in (folder / "runs").rglob("*")] == [
        "runs/other",
        "runs/other/notes.txt",
    ]


@pytest.mark.parametrize("content", ["weights.bin", "checkpoint.json"])
def test_a_checkpoint_that_is_not_a_runs_own_stops_force(start, tmp_path, content):
    folder = tmp_path / "it"
    start(folder, save_strategy="steps", save_steps=3)
    theirs = folder / "checkpoint-7"
    theirs.mkdir()
    for name in (content, "notes.txt"):
        (theirs / name).write_text("mine")
    for more in ({}, {"force": True}):
        with pytest.raises(TrainError, match=r"BS74[01]"):
            start(folder, **more)
    start(folder, resume_from_checkpoint=str(folder / "checkpoint-3"))
    assert (theirs / "notes.txt").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_told_before_the_weights_are_loaded(start, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TrainError, match=r"BS747.*Not a directory"):
        start(tmp_path / "file" / "it", model="nowhere")


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_a_folder_that_is_out_of_reach_is_an_error_with_a_code(start, tmp_path):
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed").chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)  # To root nothing is out of reach.
    try:
        with pytest.raises(TrainError, match=r"BS747.*Permission denied"):
            start(tmp_path / "closed" / "it")
    finally:
        if root:
            os.seteuid(0)
        (tmp_path / "closed").chmod(0o700)


def test_a_log_that_cannot_be_written(start, tmp_path, monkeypatch):
    class Closes(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 0:
                (tmp_path / "it" / "log.jsonl").unlink(missing_ok=True)
                (tmp_path / "it" / "log.jsonl").mkdir(exist_ok=True)

    with pytest.raises(TrainError, match=r"BS747.*log\.jsonl.*Is a directory"):
        start(tmp_path / "it", callbacks=[Closes()], logging_steps=1)
