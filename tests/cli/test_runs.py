"""``bishare runs``: what runs were asked, and what came of them."""

import json
import subprocess
import sys

import pytest

from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer

RECORD = {
    "status": "finished",
    "spec": {"name": "ke", "params": {"r": 4}},
    "plan": {"trainable": 1234},
    "asked": {"learning_rate": 0.01, "output_dir": "x", "data": "rows.jsonl"},
    "started": "2026-01-01T00:00:00+00:00",
    "ended": "2026-01-01T00:01:30+00:00",
}


def write(folder, losses=(), **record):
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({**RECORD, **record}))
    lines = [json.dumps({"loss": loss, "step": step}) for step, loss in enumerate(losses, 1)]
    (folder / "log.jsonl").write_text("\n".join(lines))


def test_runs_stand_side_by_side_with_what_they_differ_in(bishare, here):
    write(here / "out/one", [3.0, 1.5, 2.0])
    faster = {**RECORD["asked"], "learning_rate": 0.1, "output_dir": "y"}
    write(here / "out/two", [3.0, 2.5], asked=faster, started="2025-01-01T00:00:00+00:00")
    run = bishare("runs", "out", "out/one")
    assert run.code == 0
    head, _, *rows = run.out.splitlines()
    assert head.split()[:5] == ["run", "status", "spec", "learning_rate", "trainable"]
    first, second = (row.split() for row in rows)
    assert first[:4] == ["out/two", "finished", "ke", "0.1"]
    assert second == [
        *("out/one", "finished", "ke", "0.01", "1,234", "3"),
        *("3.0000", "1.5000", "2.0000", "-", "90", "-"),
    ]


@pytest.mark.parametrize(
    ("key", "order"),
    [("best", ["b", "a", "c"]), ("steps", ["c", "a", "b"]), ("folder", ["a", "b", "c"])],
)
def test_sorting_puts_what_is_not_known_last(bishare, here, key, order):
    write(here / "a", [3.0, 2.0])
    write(here / "b", [3.0, 1.0, 4.0])
    write(here / "c")
    data = json.loads(bishare("runs", "c", "b", "a", "--sort", key, "--json").out)
    assert [run["folder"] for run in data["runs"]] == order


def test_it_reads_what_training_writes(bishare, here):
    tiny_model("llama").save_pretrained(here / "tiny")
    tiny_tokenizer().save_pretrained(here / "tiny")
    rows = [{"prompt": f"a b {i}", "completion": "abc"} for i in range(12)]
    (here / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ("train", "lora", "--model", "tiny", "--data", "rows.jsonl", "--output_dir", "out")
    trained = bishare(*command, "--max_steps", 2, "--logging_steps", 1, "--eval_split", 4, "--json")
    assert trained.code == 0
    wanted = json.loads(trained.out)
    [run] = json.loads(bishare("runs", ".", "--json").out)["runs"]
    assert (run["status"], run["spec"], run["steps"]) == ("finished", "lora", 2)
    assert (run["first"], run["last"]) == (wanted["loss_first"], wanted["loss_last"])
    assert run["held_out"] == wanted["eval_loss"]
    assert run["seconds"] == wanted["seconds"]
    assert run["settings"]["max_steps"] == 2


def test_a_run_that_goes_on_is_shown_as_far_as_it_has_come(bishare, here):
    write(here / "out", [3.0, float("nan"), 10**400, 2.0], status="running", ended=None)
    with (here / "out/log.jsonl").open("a") as file:
        file.write('\n[]\n{"loss": 1.')
    [run] = json.loads(bishare("runs", "out", "--json").out)["runs"]
    assert (run["status"], run["steps"], run["best"], run["seconds"]) == ("running", 4, 2.0, None)


def test_what_is_no_run(bishare, here):
    run = bishare("runs", ".")
    assert run.code == 2
    assert "error[BS904]: `.`: no run.json is in it" in run.err
    write(here / "good")
    write(here / "bad", spec="\x1b[31m")
    run = bishare("runs", ".")
    assert run.code == 2
    assert "error[BS904]: `bad/run.json`: spec: " in run.err
    assert "good" in run.out


def test_nothing_that_a_record_says_reaches_a_terminal_as_a_command(bishare, here):
    write(here / "out", status="\x1b[31mred")
    assert "\x1b" not in bishare("runs", "out").out


def test_it_needs_no_torch(here):
    write(here / "out")
    program = (
        "import sys; from bishare_dsl.cli.main import main; code = main(['runs', 'out']);"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
