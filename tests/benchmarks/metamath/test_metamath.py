"""PEFT's MetaMathQA benchmark on specs of bishare: what a CPU can check. Results here are made up."""

import json
import os
import shutil
import subprocess
import sys
from statistics import fmean, stdev

import pytest
import torch
from peft import PeftConfig, get_peft_model
from peft.utils import SAFETENSORS_WEIGHTS_NAME

import bishare_dsl.peft
from bishare_dsl import plan_spec
from bishare_dsl.testing.models import tiny_model
from tests.benchmarks.conftest import BENCHMARKS

HERE = BENCHMARKS / "metamath"
sys.path.insert(0, str(HERE))

import experiments  # noqa: E402 - its folder is where it looks for what it uses
import table  # noqa: E402

assert bishare_dsl.peft  # It registers the method.
PEFT = BENCHMARKS.parent / "tests/benchmarks/metamath/peft"
LILY, LORA = 9_485_280, 9_461_760
"""What PEFT's results of Lily, with its routers, and of LoRA r=10 count."""

SPECS = {run.name: run for run in experiments.experiments()}


def test_every_spec_runs_at_each_learning_rate_with_each_seed():
    runs = experiments.experiments()
    cells = {(run.name, run.learning_rate, run.seed) for run in runs}
    assert len(cells) == len(runs) == 4 * 3 * 3
    first = experiments.experiments(first=True)
    assert {run.name for run in first} == {"lora-mlp", "lily-static"}
    assert len(first) == 6
    assert {(run.name, run.learning_rate, run.seed) for run in first} <= cells
    # Seeds are outermost, so an interrupted command compares all specs.
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)


@pytest.mark.parametrize("run", SPECS.values(), ids=SPECS)
def test_specs_train_as_many_parameters_as_lily_of_peft(run):
    plan = plan_spec(run.config.spec, "llama-3.2-3b")
    assert abs(plan.trainable / LILY - 1) < 0.004
    if run.name == "lora-mlp":
        assert plan.trainable == LORA
        assert {term.scale for term in plan.terms} == {2}  # PEFT's entry has alpha 20 and r 10.
    assert f" {plan.trainable:,} |" in (HERE / "README.md").read_text()


def test_peft_reads_the_config_that_the_experiment_means(tmp_path):
    runs = experiments.experiments()
    experiments.write(tmp_path, runs)
    known = json.loads((PEFT / "default_training_params.json").read_text())
    for run in runs:
        folder = tmp_path / "experiments/bishare" / run.folder
        assert sorted(path.name for path in folder.iterdir()) == sorted(experiments.FILES)
        config = PeftConfig.from_pretrained(folder)
        assert config.peft_type == "BISHARE"
        assert (config.seed, config.spec) == (run.seed, run.config.spec)
        params = json.loads((folder / "training_params.json").read_text())
        assert params.keys() <= known.keys()
        assert params["seed"] == run.seed
        assert params["optimizer_kwargs"] == {**known["optimizer_kwargs"], "lr": run.learning_rate}


def test_what_has_changed_is_written_again_and_nothing_else(tmp_path):
    """PEFT's Makefile compares times."""
    runs = experiments.experiments(first=True)
    experiments.write(tmp_path, runs)
    files = sorted(tmp_path.rglob("*.json"))
    assert len(files) == 12
    files[0].write_text("{}")
    for file in files:
        os.utime(file, (1, 1))
    experiments.write(tmp_path, runs)
    assert [file for file in files if file.stat().st_mtime != 1] == files[:1]
    assert "BISHARE" in files[0].read_text()


@pytest.mark.parametrize("run", SPECS.values(), ids=SPECS)
def test_a_run_of_peft_on_a_tiny_model_of_as_many_layers(run, tmp_path):
    """The calls of PEFT's run.py, in bfloat16."""
    sizes = {"hidden_size": 256, "intermediate_size": 320, "num_hidden_layers": 28}
    base = tiny_model("llama", **sizes).to(torch.bfloat16)
    ids = torch.arange(3, 27).view(2, 12)
    with torch.no_grad():
        want = base.eval()(ids).logits.clone()
    run.config.save_pretrained(tmp_path / "experiment")
    config = PeftConfig.from_pretrained(tmp_path / "experiment")
    model = get_peft_model(base, config, autocast_adapter_dtype=True)
    parameters = [p for p in model.parameters() if p.requires_grad]
    trained, whole = model.get_nb_trainable_parameters()
    assert trained == base.bishare.plan.trainable == sum(p.numel() for p in parameters) < whole
    assert all(p.dtype is torch.float32 for p in parameters)
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).logits, want)
    optimizer = torch.optim.AdamW(model.parameters(), **run.training_params["optimizer_kwargs"])
    losses = []
    model.train()
    for _ in range(3):
        optimizer.zero_grad()
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
        loss = model(**batch, num_items_in_batch=ids.numel()).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval()
    with torch.inference_mode():
        assert not torch.equal(model(ids).logits, want)
        assert model.generate(input_ids=ids, max_new_tokens=2, pad_token_id=0).shape[0] == 2
        with model.disable_adapter():
            assert torch.equal(model(ids).logits, want)
    model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / SAFETENSORS_WEIGHTS_NAME).stat().st_size > trained
    record = model.peft_config["default"].to_dict()
    for key, value in record.items():
        record[key] = list(value) if isinstance(value, set) else value
    assert json.loads(json.dumps(record))["seed"] == run.seed


def test_seeds_give_other_initial_values_whatever_the_seed_of_torch_is():
    """PEFT's run.py resets it to 0."""
    values = []
    for run in experiments.experiments():
        if run.name == "lily-static" and run.learning_rate == 1e-3:
            torch.manual_seed(0)
            model = get_peft_model(tiny_model("llama", num_hidden_layers=28), run.config)
            values.append(torch.cat([p.flatten() for p in model.parameters() if p.requires_grad]))
    assert len(values) == 3
    assert not torch.equal(values[0], values[1])
    assert not torch.equal(values[1], values[2])


# The table ----------------------------------------------------------------------------------------


def made_up(run, loss, accuracy, status="success"):
    """A result in PEFT's form with numbers that nobody measured."""
    config = {"optimizer_kwargs": {"lr": run.learning_rate, "weight_decay": 0.1}, "seed": run.seed}
    last = {"step": 5000, "test accuracy": accuracy, "train loss": loss, "forgetting": 0.125}
    return {
        "run_info": {"train_config": config, "peft_config": {"seed": run.seed}, "error_msg": ""},
        "train_info": {
            "metrics": [{"step": 4750, "valid accuracy": 0.5, "train loss": 9.0}, last],
            "status": status,
            "num_trainable_params": 1000,
            "file_size": 3 * 2**20,
            "accelerator_memory_max": 5 * 2**30,
            "train_time": 60.0,
        },
    }


def write_results(folder, numbers, skip=()):
    """Results of all experiments: ``numbers(run)`` are the loss and the accuracy."""
    (folder / "results").mkdir()
    for run in experiments.experiments():
        if run.folder not in skip:
            (folder / run.result).write_text(json.dumps(made_up(run, *numbers(run))))
    (folder / "results/lora--llama-3.2-3B-rank32.json").write_text("{}")  # One of PEFT's.


STARTS = {"lora-mlp": 0.40, "lily-static": 0.45, "shared-core": 0.30, "bishare-ke": 0.20}


def numbers(run):
    """The lowest loss is at 3e-4, but for Lily at 1e-3. Seeds differ equally for all specs."""
    best = 1e-3 if run.name == "lily-static" else 3e-4
    loss = 0.5 if run.learning_rate == best else 0.6
    return loss, STARTS[run.name] + [0.0, 0.02, 0.07][run.seed]


def row_of(text, name):
    return next(line for line in text.splitlines() if line.startswith(f"{name} "))


def rate_of(text, name):
    return row_of(text, name).split()[2]


def test_the_table_has_the_learning_rate_of_the_lowest_loss_and_paired_differences(tmp_path):
    write_results(tmp_path, numbers)
    text = table.report(tmp_path / "results")
    scores = [40.0, 42.0, 47.0]
    half = 4.303 * stdev(scores) / 3**0.5
    lora = row_of(text, "lora-mlp").split()
    assert lora == [
        *("lora-mlp", "1,000", "0.0003", "3", f"{fmean(scores):.1f}", "±", f"{half:.1f}"),
        *("-", "+0.125", "3.0", "5.0", "60"),
    ]
    assert rate_of(text, "lily-static") == "0.001*"
    # Each seed is as far from LoRA's, however far the seeds are from each other.
    assert "-10.0 ± 0.0" in row_of(text, "shared-core")
    assert "* the lowest or highest" in text
    assert "missing" not in text


@pytest.mark.parametrize("state", ["missing", "diverged"])
def test_a_learning_rate_without_a_seed_is_not_chosen_and_named(state, tmp_path):
    gone = "lora-mlp-lr0.0003-seed2"

    def diverged(run):
        loss, accuracy = numbers(run)
        return float("nan") if run.folder == gone else loss, accuracy

    if state == "missing":
        write_results(tmp_path, numbers, skip=[gone])
    else:
        write_results(tmp_path, diverged)
    text = table.report(tmp_path / "results")
    assert f"missing or diverged, 1 of 36: {gone}" in " ".join(text.split())
    assert rate_of(text, "lora-mlp") != "0.0003"


def test_the_first_cut_and_no_results_at_all(tmp_path):
    write_results(tmp_path, numbers)
    text = table.report(tmp_path / "results", first=True)
    assert "bishare-ke" not in text
    assert rate_of(text, "lily-static") == "0.0001"  # The only one is at no edge.
    (tmp_path / "empty").mkdir()
    assert table.report(tmp_path / "empty").startswith("missing or diverged, 36 of 36: ")


def test_a_file_with_another_experiment_in_it_is_refused(tmp_path):
    write_results(tmp_path, numbers)
    runs = experiments.experiments()
    (tmp_path / runs[0].result).write_text(json.dumps(made_up(runs[-1], 0.5, 0.5)))
    with pytest.raises(SystemExit, match=r"has learning rate 0\.001 and seed 2"):
        table.report(tmp_path / "results")
    (tmp_path / runs[0].result).write_text(json.dumps(made_up(runs[0], 0.5, 0.5, "canceled")))
    with pytest.raises(SystemExit, match="did not succeed"):
        table.report(tmp_path / "results")


# The command --------------------------------------------------------------------------------------

GIT = """#!/bin/sh
echo "git $*" >> "$LOG"
if [ "$1" = clone ]; then
    mkdir -p peft/method_comparison/MetaMathQA/results
    cp "$STUBS"/* peft/method_comparison/MetaMathQA/
fi
"""
PYTHON = """#!/bin/sh
case "$1 $2" in
    "-m pip" | "-m bishare_dsl.autoload" | "-c "*) echo "python $*" >> "$LOG" ;;
    *) exec "$REAL" "$@" ;;
esac
"""
RUN_PY = """import json, sys
from pathlib import Path

folder = Path(sys.argv[-1])
params = json.loads((folder / "training_params.json").read_text())
seed = json.loads((folder / "adapter_config.json").read_text()).get("seed", 0)
if seed == 1 and folder.name.startswith("lily"):
    sys.exit("out of memory")
run_info = {"train_config": params, "peft_config": {"seed": seed}}
last = {"train loss": 0.5, "test accuracy": 0.25, "forgetting": 0.0}
info = {"metrics": [last], "status": "success", "num_trainable_params": 7, "file_size": 1}
info |= {"accelerator_memory_max": 1, "train_time": 1.0}
name = "--".join(folder.parts[-2:])
Path(f"results/{name}.json").write_text(json.dumps({"run_info": run_info, "train_info": info}))
print("ran", name)
"""


def test_the_command_runs_what_is_not_done_and_prints_the_table(tmp_path):
    """With PEFT's Makefile, and stand-ins for git, pip and run.py."""
    stubs, programs, work = tmp_path / "stubs", tmp_path / "bin", tmp_path / "work"
    for folder in (stubs, programs, work / "venv/bin"):
        folder.mkdir(parents=True)
    shutil.copy(PEFT / "Makefile", stubs)
    (stubs / "run.py").write_text(RUN_PY)
    for path, text in ((programs / "git", GIT), (work / "venv/bin/python", PYTHON)):
        path.write_text(text)
        path.chmod(0o755)
    log = tmp_path / "log"
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "LOG": str(log),
        "STUBS": str(stubs),
        "REAL": sys.executable,
        "PYTHONPATH": str(BENCHMARKS.parent),
    }

    def run(*words):
        command = ["sh", str(HERE / "run.sh"), *words, str(work)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = run("--first")
    assert first.count("\nran ") == 5
    assert "missing or diverged, 1 of 6: lily-static-lr0.0001-seed1" in first
    said = log.read_text()
    assert "git clone -q https://github.com/huggingface/peft" in said
    assert "git -C peft checkout -q -B main v0.21.2" in said
    assert "-m bishare_dsl.autoload on" in said
    # Lily fails with one seed at each of three learning rates, and five are done.
    assert run().count("\nran ") == 36 - 3 - 5
    last = run()
    assert last.count("\nran ") == 0
    assert row_of(last, "lora-mlp")
    assert not [line for line in last.splitlines() if line.startswith("lily-static ")]
