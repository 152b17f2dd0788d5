import json
import os
import signal
from pathlib import Path

import pytest
import yaml
from transformers import TrainerCallback

from bishare_dsl.adapter.files import read_adapter
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer


@pytest.fixture
def folder(here, monkeypatch):
    """A model, rows, a spec and a config for short runs; nothing is drawn, which takes longest."""
    monkeypatch.setattr("bishare_dsl.train.run.draw_curve", lambda *_: None)
    tiny_model("llama").save_pretrained("tiny")
    tiny_tokenizer().save_pretrained("tiny")
    rows = [{"prompt": f"a {number} ", "completion": "c d e"} for number in range(8)]
    (here / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (here / "small.share").write_text(
        "spec small\nparam r = 2\ntarget q_proj, v_proj\nshare a per kind rank r\n"
    )
    config = {
        "spec": "small.share", "model": "tiny", "data": "rows.jsonl", "output_dir": "out",
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "warmup_steps": 0,
    }  # fmt: skip
    (here / "train.yaml").write_text(yaml.safe_dump(config))
    return here


def record(name="out"):
    return json.loads(Path(name, "run.json").read_text())


def test_spec_model_and_rows_are_enough(bishare, folder):
    run = bishare(
        "train", "small.share", "--model", "tiny", "--data", "rows.jsonl", "--output_dir", "out"
    )
    assert run.code == 0
    assert "steps        1 of 64 examples, 1.00 epochs" in run.out
    assert "bishare eval out --model tiny --tasks ..." in run.out
    assert "8 rows (prompt-completion)" in run.err
    assert "BS752" not in run.err
    assert "lr 1.00e-04" in run.err
    assert bishare("inspect", "out").code == 0
    assert record()["arguments"]["learning_rate"] == 1e-4


def test_flags_win_over_the_config(bishare, folder):
    run = bishare(
        "train", "--config", "train.yaml", "--set", "r=3", "--learning_rate", "2e-3", "--seed=4",
        "--max-length", 16, "--dataloader-num-workers=0", "--bf16", "--no_dataloader_pin_memory",
        "--gradient_checkpointing", "--lr_scheduler_type", "cosine", "--packing", "-q",
        "--dtype", "float16",
    )  # fmt: skip
    assert (run.code, run.err) == (0, "")
    found = record()
    arguments = found["arguments"]
    assert arguments["learning_rate"] == 2e-3
    assert (arguments["seed"], arguments["bf16"], arguments["dataloader_pin_memory"]) == (
        4,
        True,
        False,
    )
    assert arguments["lr_scheduler_type"] == "cosine"
    assert (found["settings"]["max_length"], found["settings"]["packing"]) == (16, True)
    assert found["settings"]["dtype"] == "float16"
    assert found["batch"]["effective"] == 4
    assert read_adapter("out").plan.params == {"r": 3}


def test_a_flag_does_not_take_the_word_behind_it(bishare, folder):
    config = yaml.safe_load((folder / "train.yaml").read_text())
    del config["spec"]
    (folder / "train.yaml").write_text(yaml.safe_dump(config))
    assert bishare("train", "--bf16", "small.share", "--config", "train.yaml").code == 0
    assert record()["arguments"]["bf16"]
    run = bishare("train", "--bf16", "false", "small.share", "--config", "train.yaml", "--force")
    assert run.code == 0
    assert not record()["arguments"]["bf16"]


def test_json(bishare, folder):
    run = bishare(
        "train", "--config", "train.yaml", "--json", "--warmup_steps", 9, "--eval_split", 4
    )
    assert run.code == 0
    found = json.loads(run.out)
    assert found["adapter"] == "out"
    assert (found["steps"], found["data"]["eval"]["rows"]) == (1, 4)
    assert found["eval_loss"] > 0
    assert [problem["code"] for problem in found["problems"]] == ["BS752"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--lr", "1"], "BS730", "it is `learning_rate`"),
        (["--lora_r=8"], "BS730", "the spec says it"),
        (["--lr_of", "C=2x"], "BS731", "no share and no factor"),
        (["--resume", "nowhere"], "BS742", "run.json"),
        (["--learning_rat", "1"], "BS730", "did you mean `learning_rate`?"),
        (["--data_splitt=1"], "BS730", "did you mean `data_split`?"),
        (["--learning_rate", "fast"], "BS731", "it is a number"),
        (["--bf16", "--fp16"], "BS732", "fp16 and bf16"),
        (["--push_to_hub"], "BS733", "bishare push"),
        (["--config", "none.yaml"], "BS734", "No such file"),
        (["--data", "none.jsonl"], "BS701", "none.jsonl"),
        (["--learning_rate"], "BS901", "requires an argument"),
        (["--max_length", "x"], "BS731", "`max_length` cannot be `x`"),
        (["none.share"], "BS902", "none.share"),
        (["--set", "q=1"], "BS207", "`q`"),
        (["--resume_from_checkpoint", "last"], "BS742", "no folder `out`"),
        (["small.share", "rows.jsonl"], "BS901", "unexpected extra argument"),
    ],
)
def test_what_is_wrong_with_the_command(bishare, folder, arguments, code, said):
    run = bishare(
        "train", *(["--config", "train.yaml"] * ("--config" not in arguments)), *arguments
    )
    assert (run.code, run.out) == (2, "")
    assert f"error[{code}]" in run.err
    assert said in run.err
    assert not (folder / "out").exists()


def test_nothing_at_all(bishare, here):
    run = bishare("train")
    assert run.code == 2
    for name in ("spec", "model", "data", "output_dir"):
        assert f"error[BS736]: `{name}` is missing" in run.err


def test_an_existing_run(bishare, folder):
    assert bishare("train", "--config", "train.yaml", "-q").code == 0
    run = bishare("train", "--config", "train.yaml")
    assert run.code == 2
    assert "`bishare train --resume out` goes on with it, `--force` begins anew" in run.err
    assert bishare("train", "--config", "train.yaml", "--resume_from_checkpoint", "last").code == 0


def test_an_adapter_in_the_place_of_a_spec(bishare, folder):
    bishare("compile", "small.share", "--model", "tiny", "--out", "fresh", "--seed", 3)
    assert bishare("train", "fresh", "--config", "train.yaml", "--learning_rate", 0).code == 0
    fresh, trained = (read_adapter(name).tensors() for name in ("fresh", "out"))
    assert all((fresh[name] == tensor).all() for name, tensor in trained.items())


def test_a_spec_on_standard_input(bishare, folder):
    run = bishare(
        "train", "-", "--config", "train.yaml", stdin=(folder / "small.share").read_bytes()
    )
    assert run.code == 0
    assert read_adapter("out").plan.spec == "small"


def test_interrupted(bishare, folder, monkeypatch):
    monkeypatch.setattr("bishare_dsl.train.run.progress", lambda: Interrupts())
    command = ["train", "--config", "train.yaml", "--num_train_epochs", 3, "--force"]
    run = bishare(*command)
    assert (run.code, run.out) == (130, "")
    again = "bishare train --resume out"
    assert "error: interrupted at step 3 of 6; saved in out/checkpoint-3" in run.err
    assert f"`{again}` goes on from there" in run.err
    assert record()["status"] == "interrupted"
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    monkeypatch.setattr("bishare_dsl.train.run.draw_curve", lambda *_: None)
    run = bishare(*again.split()[1:])
    assert run.code == 0
    assert "steps        6 of 4 examples" in run.out


def test_going_on_with_a_finished_run(bishare, folder):
    assert bishare("train", "--config", "train.yaml", "-q").code == 0
    assert bishare("train", "--resume", "out", "-q").code == 0
    run = bishare("train", "--resume", "out", "--num_train_epochs", 2)
    assert run.code == 0
    assert "warning[BS755]" in run.err
    assert "steps        4 of 4 examples, 2.00 epochs" in run.out


def test_rates_of_shares(bishare, folder):
    run = bishare(
        "train", "--config", "train.yaml", "--lr_of", "B=16x", "--lr-of=a.A=1e-5",
        "--weight_decay_of", "A=0.1", "--recipe", "paper",
    )  # fmt: skip
    assert run.code == 0
    assert record()["settings"]["lr_of"] == {"B": "16x", "a.A": "1e-5"}
    assert record()["settings"]["weight_decay_of"] == {"A": 0.1}


class Interrupts(TrainerCallback):
    def on_step_begin(self, args, state, control, **_):
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    def close(self):
        pass


def test_a_loss_that_is_no_number(bishare, folder):
    run = bishare(
        "train", "--config", "train.yaml", "--learning_rate", "1e39", "--max_grad_norm", 0,
        "--num_train_epochs", 4,
    )  # fmt: skip
    assert run.code == 1
    assert "error[BS750]" in run.err
    assert "the loss of step 2 is nan; no step before it was good" in run.err
    assert bishare("inspect", "out").code == 2


def test_help(bishare):
    run = bishare("train", "--help")
    assert run.code == 0
    assert "--help-all" in run.out
    run = bishare("train", "--help-all")
    assert run.code == 0
    assert "--learning_rate 0.0001" in run.out
    assert "--push_to_hub" not in run.out


def test_completion_looks_nothing_up(bishare, monkeypatch, capsys):
    monkeypatch.setenv("_BISHARE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "bishare train --bf16 --eval")
    monkeypatch.setenv("COMP_CWORD", "3")
    assert "--eval_split" in bishare().out
