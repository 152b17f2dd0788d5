import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import TrainerCallback

from bishare_dsl.folder.files import read_adapter
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer
from tests.train.conftest import saved


@pytest.fixture
def folder(here):
    """A model, rows, a spec and a config for short runs."""
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


def asked(name="out"):
    return yaml.safe_load(Path(name, "run.json").read_text())


def test_several_files_are_tasks(bishare, folder):
    Path("tasks").mkdir()
    for name in ("one", "two"):
        Path("tasks", f"{name}.jsonl").write_text(Path("rows.jsonl").read_text())
    words = ("--config", "train.yaml", "--eval_split", 2, "--json")
    run = bishare("train", "--data", *sorted(Path("tasks").iterdir()), *words)
    assert run.code == 0
    found = json.loads(run.out)
    assert [task["name"] for task in found["tasks"]] == ["one", "two"]
    assert [task["data"]["eval"]["rows"] for task in found["tasks"]] == [2, 2]
    assert (found["folder"], found["problems"]) == ("out", [])
    assert found["steps"] > 0
    assert found["eval_loss"] > 0
    assert all(read_adapter(Path("out", name)).plan.spec == "small" for name in ("one", "two"))
    assert set(asked()["data"]) == {"one", "two"}


def test_spec_model_and_rows_are_enough(bishare, folder):
    words = ("--model", "tiny", "--data", "rows.jsonl", "--output_dir", "out")
    run = bishare("train", "small.share", *words)
    assert run.code == 0
    assert "steps          1 of all 8 examples, 1.00 epochs" in run.out
    assert "bishare merge out --model tiny --out merged" in run.out
    assert "8 rows (prompt-completion)" in run.err
    assert "'learning_rate': '0.0001'" in run.err
    assert bishare("inspect", "out").code == 0


def test_flags_win_over_the_config_and_take_no_word_behind_them(bishare, folder):
    config = yaml.safe_load((folder / "train.yaml").read_text())
    del config["spec"]
    (folder / "train.yaml").write_text(yaml.safe_dump(config))
    run = bishare(
        "train", "--bf16", "small.share", "--config", "train.yaml", "--set", "r=3", "--seed=4",
        "--learning_rate", "2e-3", "--max-length", 16, "--dataloader-num-workers=0", "-q",
        "--no_dataloader_pin_memory", "--gradient_checkpointing", "--lr_scheduler_type", "cosine",
        "--dtype", "float16", "--fp16", "false",
    )  # fmt: skip
    assert (run.code, run.err) == (0, "")
    found = asked()
    assert found["learning_rate"] == 2e-3
    assert (found["seed"], found["bf16"], found["dataloader_pin_memory"]) == (4, True, False)
    assert (found["lr_scheduler_type"], found.get("fp16", False)) == ("cosine", False)
    assert (found["max_length"], found["dtype"]) == (16, "float16")
    assert "param r = 3" in found["spec"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--lr", "1"], "BS730", "it is `learning_rate`"),
        (["--warmup_ratio", "0.1"], "BS730", "it is `warmup_steps`, a number of steps"),
        (["--learning_rate", "0,0002"], "BS731", "write `0.0002`"),
        (["--learning_rate", "1e−3"], "BS731", "write `1e-3`"),
        (["--max_steps", "1e3"], "BS731", "write `1000`"),
        (["--eval_split", "2.5"], "BS731", "which is whole\n  = help: `bishare train --help`"),
        (["--dtype", "bf16"], "BS731", "did you mean `bfloat16`?"),
        (["--lr_scheduler_type", "cosin"], "BS731", "did you mean `cosine`?"),
        (["--eval_split", "20%"], "BS731", "write `0.2`"),
        (["--format", "jsonl"], "BS731", "leave it out: the kind of file is seen by its ending"),
        (["--data_split", "train[:90%]"], "BS732", "a part of a file, take `eval_split`"),
        (["--data_subset", "en"], "BS732", "nothing reads `data_subset`"),
        (["--eval_data_split", "test"], "BS732", "nothing reads `eval_data_split`"),
        (["--start", "mixture"], "BS732", "name one, or leave `start` out"),
        (["--max_steps", "0"], "BS732", "0 steps are for new members of a `library`"),
        (["--bf16", "--fp16"], "BS732", "fp16 and bf16"),
        (["--push_to_hub"], "BS730", "hf upload"),
        (["--config", "none.yaml"], "BS734", "No such file"),
        (["--data", "none.jsonl"], "BS701", "none.jsonl"),
        (["--learning_rate"], "BS901", "requires an argument"),
        (["--rows_at_once", "0"], "BS731", "or equal to 1\n  = help: `bishare train --help`"),
        (["none.share"], "BS902", "none.share"),
        (["tiny"], "BS902", "that is a folder"),
        (["tiny/checkpoint-3"], "BS902", "`bishare specs` lists those that ship"),
        (["--set", "q=1"], "BS207", "`q`"),
        (["small.share", "rows.jsonl"], "BS901", "unexpected extra argument"),
        (["small.share", "tiny"], "BS902", "a base is given by `--model tiny`"),
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


def test_a_library_spec_with_one_file_says_that_no_library_is_begun(bishare, folder):
    run = bishare("train", "library_core", "--config", "train.yaml")
    assert (run.code, "; one adapter and no library" in run.err) == (0, True)


def test_an_adapter_in_the_place_of_a_spec(bishare, folder):
    bishare("compile", "small.share", "--model", "tiny", "--out", "fresh", "--seed", 3)
    assert bishare("train", "fresh", "--config", "train.yaml", "--learning_rate", 0).code == 0
    fresh, trained = read_adapter("fresh").tensors(), saved(Path("out"))
    assert all((fresh[name] == tensor).all() for name, tensor in trained.items())


@pytest.mark.parametrize("ends", ["a full disk", "a reader that ends"])
def test_notes_and_progress_that_cannot_be_written_stop_no_training(folder, ends):
    reader, writer = os.pipe()
    os.close(reader)
    program = "import sys; from bishare_dsl.cli.main import main; sys.exit(main())"
    with Path("/dev/full").open("w") as full, os.fdopen(writer, "w") as ended:
        found = subprocess.run(
            [sys.executable, "-c", program, "train", "--config", "train.yaml"],
            stdout=subprocess.PIPE,
            stderr=full if ends == "a full disk" else ended,
            check=False,
        )
    assert found.returncode == 0
    assert b"held-out" not in found.stdout
    assert b"steps          2 of 4 examples" in found.stdout
    assert read_adapter("out").plan.spec == "small"


def test_interrupted(bishare, folder, monkeypatch):
    stop = Interrupts.on_step_begin
    monkeypatch.setattr("bishare_dsl.train.trainer.Watch.on_step_begin", stop)
    command = ["train", "--config", "train.yaml", "--num_train_epochs", 3]
    run = bishare(*command)
    assert (run.code, run.out) == (130, "")
    again = "bishare train --resume out"
    assert "error: interrupted at step 3 of 6; saved in out/checkpoint-3" in run.err
    assert f"`{again}` goes on from there" in run.err
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    run = bishare(*again.split()[1:])
    assert run.code == 0
    assert "steps          6 of 4 examples" in run.out
    assert bishare(*again.split()[1:], "-q").code == 0


class Interrupts(TrainerCallback):
    def on_step_begin(self, args, state, control, **_):
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGINT)
