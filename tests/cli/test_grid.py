"""Several specs, learning rates and seeds in one command: one ordinary run for each."""

import json
import math
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer
from bishare_dsl.writing import lock_name
from tests.train.killed import child

FILES = ("adapter_model.safetensors", "adapter_config.json")
CELLS = [
    f"{spec},learning_rate={rate},seed=0"
    for spec in ("small,r=3", "other,r=3")
    for rate in ("0.001", "0.02")
]


@pytest.fixture
def folder(here):
    """A base, rows to train on and to hold out, and two specs."""
    torch.set_num_threads(1)
    tiny_model("llama").save_pretrained("tiny")
    tiny_tokenizer().save_pretrained("tiny")
    for name, count in (("rows", 12), ("held", 5)):
        rows = [{"prompt": f"{name[0]} {n} ", "completion": "c d e"} for n in range(count)]
        Path(f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = "spec {}\nparam r = 2\ntarget q_proj, v_proj\ndropout 0.2\nshare a {} rank r\n"
    for name, key in (("small", "per kind"), ("other", "per module")):
        Path(f"{name}.share").write_text(text.format(name, key))
    return here


COMMON = [
    *("--model", "tiny", "--data", "rows.jsonl", "--eval_data", "held.jsonl", "--max_steps", 3),
    *("--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 1, "--warmup_steps", 0),
    *("--set", "r=3"),
]
GRID = [
    *("train", "small.share", "other.share", *COMMON, "--output_dir", "runs"),
    *("--learning_rate", "1e-3,2e-2"),
]


def run_in(name):
    return json.loads(Path("runs", name, "run.json").read_text())


def bytes_in(folder):
    return [Path(folder, name).read_bytes() for name in FILES]


def without_times(run):
    """A record without what differs between two equal runs: seconds and the folder."""
    results = run["record"]["results"]
    for part in (results, *results["tasks"]):
        part.pop("seconds", None)
        part.pop("folder")
    return run


def test_a_cell_is_the_run_alone_and_more_seeds_are_more_cells(bishare, folder):
    run = bishare(*GRID)
    assert run.code == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == sorted(CELLS)
    assert [line.split()[0] for line in run.out.splitlines()[2:6]] == CELLS
    assert "loading tiny" in run.err
    assert run.err.count("loading tiny") == 1
    before = {name: bytes_in(Path("runs", name)) for name in CELLS}
    run = bishare(*GRID, "--seed", "0,1")
    assert "8 runs: 4 new, 4 done" in run.err
    assert [line.split()[0][-1] for line in run.out.splitlines()[2:]] == [*"00001111"]
    assert {name: bytes_in(Path("runs", name)) for name in CELLS} == before
    # The last cell comes after seven others on the same base.
    last = "other,r=3,learning_rate=0.02,seed=1"
    words = ["--learning_rate", "2e-2", "--seed", 1, "--output_dir", "alone"]
    assert bishare("train", "other.share", *COMMON, *words).code == 0
    assert bytes_in("alone") == bytes_in(Path("runs", last))
    alone = json.loads(Path("alone/run.json").read_text())
    assert without_times(alone) == without_times(run_in(last))
    assert "8 runs: 8 done" in bishare(*GRID, "--seed", "0,1").err


def test_other_arguments_are_refused_by_name(bishare, folder):
    assert bishare(*GRID[:1], *GRID[2:]).code == 0
    for words, said in (
        (["--weight_decay", "0.1"], "its `weight_decay` is null, and not 0.1"),
        (["--max_steps", "2"], "its `max_steps` is 3, and not 2"),
    ):
        run = bishare(*GRID, *words)
        assert (run.code, "BS740" in run.err, said in run.err) == (2, True, True), run.err
    Path("other.share").write_text(Path("other.share").read_text().replace("0.2", "0.3"))
    run = bishare(*GRID)
    assert (run.code, "its `spec` is another" in run.err) == (2, True)


def spoil(self, args, state, control, model=None, **_):
    """Leave the tensors as after an update that was too large."""
    if args.learning_rate > 1 and state.global_step == 1:
        with torch.no_grad():
            next(p for p in model.parameters() if p.requires_grad).fill_(math.inf)


def test_a_diverging_cell_is_marked_and_left_out(bishare, folder, monkeypatch):
    monkeypatch.setattr("bishare_dsl.train.trainer.Watch.on_step_begin", spoil)
    words = [*GRID, "--learning_rate", "1e30,1e-3"]
    run = bishare(*words)
    assert run.code == 0
    assert "diverged, and is left out: the gradient of step 2 is" in run.err
    names = [f"{spec},r=3,learning_rate={rate},seed=0"
             for spec in ("small", "other") for rate in ("1e+30", "0.001")]  # fmt: skip
    records = [run_in(name)["record"] for name in names]
    assert ["diverged" in record for record in records] == [True, False, True, False]
    assert ["results" in record for record in records] == [False, True, False, True]
    assert "4 runs: 2 done, 2 diverged" in bishare(*words).err


class Stops(TrainerCallback):
    """Sends a signal before the third step of the third run."""

    number = signal.SIGKILL
    runs = 0

    def on_step_begin(self, args, state, control, **_):
        Stops.runs += state.global_step == 0
        if (Stops.runs, state.global_step) == (3, 2):
            os.kill(os.getpid(), Stops.number)


def killed(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


KILLS = {
    "inside of a cell, after a checkpoint": ("bishare_dsl.train.trainer.Watch.on_step_begin", 1),
    "inside of a cell, without one": ("bishare_dsl.train.trainer.Watch.on_step_begin", 9),
    "after the adapter, without its results": ("bishare_dsl.train.run.complete_record", 9),
    "after a cell": ("bishare_dsl.train.run_grid._Progress.end", 9),
}


@pytest.mark.parametrize("when", KILLS)
def test_a_killed_grid_goes_on_bit_for_bit(bishare, folder, monkeypatch, when):
    place, every = KILLS[when]
    words = [*GRID, "--save_steps", every, "--save_strategy", "no" if every > 3 else "steps"]
    assert bishare(*words).code == 0
    whole = {name: bytes_in(Path("runs", name)) for name in CELLS}
    Path("runs").rename("whole")

    def run_and_die():
        Stops.runs = 0
        monkeypatch.setattr(place, Stops.on_step_begin if "Watch" in place else killed)
        bishare(*words)

    assert child(run_and_die) == signal.SIGKILL
    finished = [name for name in CELLS if "results" in run_in_or_none(name)]
    assert len(finished) == {"after the adapter, without its results": 0, "after a cell": 1}.get(
        when, 2
    )
    run = bishare(*words)
    assert run.code == 0, run.err
    assert ("1 to go on" in run.err) is (every == 1)
    assert {name: bytes_in(Path("runs", name)) for name in CELLS} == whole


def run_in_or_none(name):
    return run_in(name)["record"] if Path("runs", name).is_dir() else {}


def test_what_a_killed_run_has_left_is_removed_under_its_lock_only(bishare, folder, monkeypatch):
    words = [*GRID, "--save_strategy", "no"]
    monkeypatch.setattr("bishare_dsl.train.run.complete_record", lambda *_, **__: None)
    assert bishare("train", "small.share", *words[3:], "--seed", "0,1").code in (0, 70)
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    left = Path("runs", CELLS[0])
    before = bytes_in(left)
    locked, done = threading.Event(), threading.Event()

    def hold():
        with lock_name(left):
            locked.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    locked.wait()
    run = bishare(*words)
    done.set()
    thread.join()
    assert (run.code, "BS741" in run.err) == (2, True)
    assert bytes_in(left) == before
    assert bishare(*words).code == 0


def test_an_interrupted_grid_keeps_what_is_done(bishare, folder, monkeypatch):
    monkeypatch.setattr(Stops, "number", signal.SIGINT)
    monkeypatch.setattr(Stops, "runs", 0)
    monkeypatch.setattr("bishare_dsl.train.trainer.Watch.on_step_begin", Stops.on_step_begin)
    run = bishare(*GRID, "--max_steps", 4)
    assert run.code == 130
    assert "the same command goes on from there" in run.err
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    run = bishare(*GRID, "--max_steps", 4)
    assert (run.code, "4 runs: 1 new, 1 to go on, 2 done" in run.err) == (0, True)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--learning_rate", "0,0002"], "BS731",
         "write `0.0002` for one rate, or `0.0,2.0` for two"),
        (["--learning_rate", "1e-3,x"], "BS731", "`learning_rate` cannot be `x`"),
        (["--seed", "0,1.5"], "BS731", "`seed` cannot be `1.5`"),
        (["--set", "q=1,2"], "BS207", "`q`"),
        (["--data", "a=rows.jsonl", "--data", "b=held.jsonl"], "BS732", "are for one task"),
        (["--resume", "runs"], "BS732", "leave `--resume` out"),
        (["again.share"], "BS732", "two specs are called `small`"),
        (["tiny"], "BS902", "a base is given by `--model tiny`"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_grid(bishare, folder, words, code, said):
    Path("again.share").write_text(Path("small.share").read_text())
    run = bishare(
        *[word for word in GRID if word != "--eval_data" and word != "held.jsonl"], *words
    )
    assert (run.code, run.out, f"error[{code}]" in run.err) == (2, "", True), run.err
    assert said in run.err
    assert not Path("runs").exists()


def test_a_decimal_comma_is_refused_and_both_ways_out_are_read(bishare, folder):
    run = bishare(
        "train", "small.share", *COMMON, "--output_dir", "one", "--learning_rate", "0.0002"
    )
    assert run.code == 0
    run = bishare(
        "train", "small.share", *COMMON, "--output_dir", "two", "--learning_rate", "0.0,2.0"
    )
    assert run.code == 0
    assert sorted(path.name.split(",")[2] for path in Path("two").iterdir()) == [
        "learning_rate=0", "learning_rate=2",
    ]  # fmt: skip


def test_a_single_run_does_not_begin_in_the_folder_of_a_grid_nor_a_grid_in_that_of_a_run(
    bishare, folder
):
    assert bishare(*GRID[:1], *GRID[2:]).code == 0
    single = ["train", "small.share", *COMMON]
    run = bishare(*single, "--output_dir", "runs")
    assert (run.code, "it has the runs of a grid" in run.err) == (2, True)
    assert bishare(*single, "--output_dir", "alone").code == 0
    run = bishare(*GRID, "--output_dir", "alone")
    assert (run.code, "BS740" in run.err) == (2, True)


def test_a_run_that_is_the_config_gets_more_seeds(bishare, folder):
    assert bishare("train", "small.share", *COMMON, "--output_dir", "alone").code == 0
    words = ["--config", "alone/run.json", "--output_dir", "runs", "--seed", "0,1"]
    run = bishare("train", *words)
    assert run.code == 0
    assert "not as in the run" not in run.err  # The command had relative paths.
    name = "small,r=3,learning_rate=0.0001,seed={}"
    assert sorted(path.name for path in Path("runs").iterdir()) == [name.format(n) for n in (0, 1)]
    tensors = [Path(at, FILES[0]).read_bytes() for at in ("alone", f"runs/{name.format(0)}")]
    assert tensors[0] == tensors[1]


MATCH = [
    *("train", "small.share", "other.share", *COMMON[:-2], "--output_dir", "runs"),
    *("--match", "other.share:r=2", "--free", "r", "--within", 30),
]


def test_each_spec_of_a_grid_meets_the_budget(bishare, folder):
    run = bishare(*MATCH)
    assert run.code == 0
    params = {}
    for place in Path("runs").iterdir():
        record = run_in(place.name)
        params[record["record"]["plan"]["spec"]] = record["params"]
    # Two layers share each tensor of `small`.
    assert params == {"small": {"r": 4}, "other": {"r": 2}}
    assert "small meets other.share:r=2 with r = 4" in run.err
    again = bishare(*MATCH)
    assert "2 runs: 2 done" in again.err


def test_one_run_meets_a_budget_and_its_record_repeats_it(bishare, folder):
    command = ["train", "small.share", *MATCH[3:]]
    assert bishare(*command).code == 0
    record = json.loads(Path("runs", "run.json").read_text())
    assert record["params"] == {"r": 4}
    run = bishare("train", "--config", "runs/run.json", "--output_dir", "again")
    assert run.code == 0
    assert bytes_in("again")[0] == bytes_in("runs")[0]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--match", "101", "--free", "r"], "BS909", "the nearest values have"),
        (["--match", "other.share", "--free", "q"], "BS207", "no param `q`"),
        (["--match", "other.share", "--free", "r", "--set", "r=2"], "BS908", "leave `r` out"),
        (["--free", "r"], "BS901", "--free goes with --match"),
        (["--match", "other.share", "--resume", "runs"], "BS732", "leave `--match` out"),
    ],
)
def test_a_budget_that_is_not_met_trains_nothing(bishare, folder, words, code, said):
    for specs in (["small.share"], ["small.share", "other.share"]):
        if "--resume" in words and len(specs) > 1:
            continue
        run = bishare("train", *specs, *COMMON[:-2], "--output_dir", "runs", *words)
        assert run.code != 0
        assert f"error[{code}]" in run.err
        assert said in run.err
        assert not Path("runs").exists()


def test_an_adapter_has_its_params(bishare, folder):
    assert bishare("compile", "small.share", "--model", "tiny", "--out", "adapter").code == 0
    run = bishare("train", "adapter", *COMMON[:-2], "--output_dir", "runs", *MATCH[-6:])
    assert "error[BS732]" in run.err
    assert "an adapter has its params" in run.err
