import json
from statistics import fmean

import pytest
import torch
from transformers import TrainerCallback

from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer
from bishare_dsl.train import train
from tests.train.conftest import go_on, values


def record_in(folder):
    return json.loads((folder / "run.json").read_text())["record"]


def repeat(config, folder, **more):
    """Run what a run.json has, with the model and tokenizer that it cannot name."""
    given = {"model": tiny_model("llama"), "tokenizer": tiny_tokenizer()}
    return train(config=config, output_dir=folder, **given | more)


def test_a_run_records_what_it_depends_on_and_its_held_out_rows(start, files, tmp_path):
    result = start(tmp_path / "out", eval_data=files / "others.jsonl", save_total_limit=None)
    record = record_in(tmp_path / "out")
    assert record["arguments"]["learning_rate"] == 1e-2
    assert (record["arguments"]["seed"], record["arguments"]["warmup_steps"]) == (0, 0)
    assert torch.__version__.startswith(record["versions"]["torch"].partition("+")[0])
    assert (record["device"], record["processes"]) == ("cpu", 1)
    plan = result.model.bishare.plan
    assert record["plan"] == {
        "spec": "small", "params": {}, "digest": plan.digest, "parameters": plan.trainable,
    }  # fmt: skip
    assert {part: report["kept"] for part, report in record["data"]["rows"].items()} == {
        "train": 24, "eval": 6,
    }  # fmt: skip
    assert record["base"]
    # transformers evaluates after the last of the six steps.
    rows = [float(loss) for loss in record["results"]["held_out"]["losses"].split()]
    assert len(rows) == 6
    assert result.eval_loss == record["results"]["eval_loss"]
    assert min(rows) <= result.eval_loss <= max(rows)
    assert fmean(rows) == pytest.approx(result.eval_loss, rel=0.2)  # The loss is over tokens.
    assert record["results"]["steps"] == 6


def test_rows_with_options_have_a_digit_each(start, tmp_path):
    rows = [
        {"prompt": f"q{n}", "completion": "a", "options": ["a", "b"] if n % 2 else ["a", "c"]}
        for n in range(8)
    ]
    (tmp_path / "choices.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = tmp_path / "choices.jsonl"
    result = start(tmp_path / "out", data=data, eval_data=data)
    digits = record_in(tmp_path / "out")["results"]["held_out"]["correct"]
    assert len(digits) == 8
    assert digits.count("1") / 8 == result.accuracy


def test_a_config_that_is_a_run_repeats_it_bit_for_bit(start, tmp_path):
    first = start(tmp_path / "first", eval_split=4)
    again = repeat(tmp_path / "first" / "run.json", tmp_path / "again", quiet=True)
    for name, tensor in values(again).items():
        assert torch.equal(tensor, values(first)[name])
    before, now = record_in(tmp_path / "first"), record_in(tmp_path / "again")
    assert before["results"]["held_out"] == now["results"]["held_out"]
    assert before["data"] == now["data"]


def test_what_differs_from_the_repeated_run_is_said(start, tmp_path, capsys):
    start(tmp_path / "first")
    run = json.loads((tmp_path / "first" / "run.json").read_text())
    run["record"]["versions"]["peft"] = "0.1"
    (tmp_path / "other.json").write_text(json.dumps(run))
    repeat(tmp_path / "other.json", tmp_path / "other")
    assert "not as in the run that is repeated: peft is" in capsys.readouterr().err
    repeat(tmp_path / "first" / "run.json", tmp_path / "same")
    assert "repeated" not in capsys.readouterr().err


def test_a_finished_run_that_goes_on_keeps_its_history_and_its_rows(start, tmp_path):
    arguments = {"eval_split": 4, "save_strategy": "steps", "save_steps": 3}
    start(tmp_path / "out", **arguments)
    before = record_in(tmp_path / "out")["results"]
    resumed = go_on(tmp_path / "out")
    after = record_in(tmp_path / "out")["results"]
    assert after["held_out"] == before["held_out"]
    assert sum("eval_loss" in entry for entry in resumed.history) == len(
        {entry["step"] for entry in resumed.history if "eval_loss" in entry}
    )


def test_the_held_out_rows_are_those_of_the_best_adapter(start, files, tmp_path):
    class Worsens(TrainerCallback):
        @torch.no_grad()
        def on_step_begin(self, args, state, control, model=None, **_):
            if state.global_step >= 3:
                for tensor in model.bishare.tensors().values():
                    tensor.add_(1)

    arguments = {"eval_data": files / "others.jsonl", "save_strategy": "steps", "save_steps": 1}
    best = {"load_best_model_at_end": True, "eval_steps": 1, "callbacks": [Worsens()]}
    result = start(tmp_path / "best", **arguments, **best)
    rows = record_in(tmp_path / "best")["results"]["held_out"]["losses"].split()
    losses = [float(loss) for loss in rows]
    by_step = {h["step"]: h["eval_loss"] for h in result.history if "eval_loss" in h}
    assert result.eval_loss == min(by_step.values())
    assert min(losses) <= result.eval_loss <= max(losses)
    assert max(losses) < by_step[6]  # The last adapter is far worse.
