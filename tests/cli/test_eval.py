"""``bishare eval``, on a tiny checkpoint and tasks with local data."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer
from tests.support.tasks import tiny_tasks


@pytest.fixture(autouse=True)
def no_look_around(monkeypatch):
    """lm_eval lists every installed package into each result, which takes seconds."""
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a checkpoint, an adapter and tasks."""
    folder = tmp_path_factory.mktemp("made")
    model = tiny_model("llama", max_position_embeddings=128)
    model.save_pretrained(folder / "tiny")
    tiny_tokenizer().save_pretrained(folder / "tiny")
    tiny_tasks(folder / "tasks", rows=6)
    return folder


@pytest.fixture
def work(made, here, bishare):
    """The current folder, with all of that and two fresh adapters."""
    shutil.copytree(made, here, dirs_exist_ok=True)
    for out in ("one", "two"):
        bishare("compile", "lora", "--model", "tiny", "--out", out)
    return here


@pytest.fixture
def evaluate(bishare):
    def run(*arguments):
        more = [] if "--include_path" in arguments else ["--include_path", "tasks"]
        return bishare("eval", *arguments, "--model", "tiny", *more)

    return run


def test_models_are_told_side_by_side(work, evaluate):
    run = evaluate("one", "two", "--base", "--tasks", "tiny_choose,tiny_write")
    assert run.code == 0
    head, _, *rows = run.out.splitlines()
    assert head.replace("|", " ").split() == ["Tasks", "n-shot", "Metric", "base", "one", "two"]
    assert [row.split("|")[1].strip() for row in rows[:3]] == [
        "tiny_choose",
        "tiny_choose",
        "tiny_write",
    ]
    notes = run.err.splitlines()
    assert notes[:3] == [
        "loading the tasks ...",
        "loading tiny ...",
        "evaluating base (1 of 3) ...",
    ]
    assert len(notes) == 8
    assert notes[-2].startswith("evaluating two (3 of 3)")


def test_json_and_files(work, evaluate):
    run = evaluate(
        *("one", "--tasks", "tiny_choose", "--tasks", "tiny_write", "--json", "--quiet"),
        *("--output_path", "out", "--log_samples", "--limit", "4", "--num_fewshot", "1"),
        *(
            "--batch_size",
            "auto",
            "--seed",
            "1,2,3",
            "--gen_kwargs",
            "temperature=0.5,do_sample=true",
        ),
    )
    assert (run.code, run.err) == (0, "")
    data = json.loads(run.out)
    assert (data["models"], data["limit"], data["problems"]) == (["one"], 4, [])
    assert {row["num_fewshot"] for row in data["rows"]} == {1}
    assert data["rows"][0]["scores"]["one"]["samples"] == 4
    [file] = (work / "out/one").glob("results_*.json")
    config = json.loads(file.read_text())["config"]
    assert config["gen_kwargs"] == {"temperature": 0.5, "do_sample": True}
    assert [config[f"{name}_seed"] for name in ("random", "numpy", "torch", "fewshot")] == [
        1,
        2,
        3,
        1234,
    ]
    assert len(list((work / "out/one").glob("samples_*.jsonl"))) == 2


def test_what_cannot_be_written_is_said(work, evaluate):
    (work / "out").mkdir()
    (work / "out/one").write_text("in the way")
    run = evaluate("one", "--tasks", "tiny_choose", "--output_path", "out")
    assert run.code == 0
    assert "lm_eval: Could not save results aggregated" in run.err


def test_without_an_adapter_it_is_the_base(work, evaluate):
    run = evaluate("--tasks", "tasks/tiny_choose.yaml", "--dtype", "bfloat16", "--json")
    assert json.loads(run.out)["models"] == ["base"]


def interrupt_second(monkeypatch):
    from bishare_dsl.evaluate import harness

    real = harness.measure

    def measure(model, tokenizer, candidate, *rest, **settings):
        if candidate.label == "two":
            raise KeyboardInterrupt
        return real(model, tokenizer, candidate, *rest, **settings)

    monkeypatch.setattr(harness, "measure", measure)


def test_what_was_finished_is_told_on_interruption(work, evaluate, monkeypatch):
    interrupt_second(monkeypatch)
    command = ("one", "two", "--tasks", "tiny_choose", "--output_path", "out")
    run = evaluate(*command)
    assert run.code == 130
    assert run.out.startswith("|   Tasks   |Version|Filter|n-shot|")
    assert run.err.splitlines()[-1].startswith("error: interrupted")
    assert [path.name for path in (work / "out").iterdir()] == ["one"]
    run = evaluate(*command, "--json")
    assert run.code == 130
    assert json.loads(run.out)["models"] == ["one"]


def test_nothing_is_told_where_nothing_was_finished(work, evaluate, monkeypatch):
    interrupt_second(monkeypatch)
    run = evaluate("two", "--tasks", "tiny_choose")
    assert (run.code, run.out) == (130, "")


def test_what_was_finished_is_told_with_an_error(work, evaluate, monkeypatch):
    from bishare_dsl.evaluate import harness

    calls = []
    real = harness.simple_evaluate

    def fail_later(**settings):
        calls.append(settings)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return real(**settings)

    monkeypatch.setattr(harness, "simple_evaluate", fail_later)
    run = evaluate("one", "two", "--tasks", "tiny_choose", "--json")
    assert run.code == 1
    data = json.loads(run.out)
    assert data["models"] == ["one"]
    assert data["problems"][0]["code"] == "BS806"
    assert "evaluating two failed: out of memory" in data["problems"][0]["message"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], "BS901", "--tasks"),
        (["--tasks", "x", "--log_samples"], "BS901", "--output_path"),
        (["--tasks", "x", "--fewshot_as_multiturn"], "BS901", "--apply_chat_template"),
        (["--tasks", "x", "--batch_size", "some"], "BS901", "auto"),
        (["--tasks", "x", "--seed", "1,2"], "BS901", "four"),
        (["--tasks", "x", "--gen_kwargs", "warm"], "BS901", "name=value"),
        (["--tasks", "x", "--gen_kwargs", "{"], "BS901", "JSON"),
        (["--tasks", "x", "--limit", "0"], "BS901", "limit"),
        (["nowhere", "--tasks", "x"], "BS601", "nowhere"),
        (["--tasks", "x", "--include_path", "nowhere"], "BS804", "nowhere"),
        (["--tasks", "tiny_choose", "--apply_chat_template"], "BS807", "template"),
        (["--tasks", "tiny_choose", "--output_path", "tasks/train.jsonl"], "BS904", "exists"),
    ],
)
def test_what_cannot_be_is_wrong_usage(work, evaluate, arguments, code, said):
    run = evaluate(*arguments)
    assert (run.code, run.out) == (2, "")
    assert f"error[{code}]" in run.err
    assert said in run.err
    assert "loading tiny" not in run.err


def test_a_model_without_weights_is_told_before_tasks_are_looked_up(bishare, here):
    run = bishare("eval", "--model", "llama-7b", "--tasks", "piqa")
    assert run.code == 2
    assert run.err.startswith("error[BS512]")


def test_list_tasks(bishare):
    run = bishare("eval", "--list-tasks")
    assert run.code == 0
    assert "0 and 5 shots: mmlu" in run.out
    groups = json.loads(bishare("eval", "--list-tasks", "--json").out)["groups"]
    assert groups["gsm8k"]["num_fewshot"] == [5]


@pytest.mark.parametrize("arguments", [["eval", "--list-tasks"], ["generate", "--help"]])
def test_help_is_quick(arguments):
    program = (
        "import sys; from bishare_dsl.cli.main import main; code = main(sys.argv[1:]);"
        "sys.exit(code or bool({'torch', 'lm_eval', 'transformers', 'rich'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program, *arguments], check=False)
    assert run.returncode == 0


def test_a_bar_on_a_terminal(work, evaluate, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("_pytest.capture.CaptureIO.isatty", lambda _: True, raising=False)
    run = evaluate("--tasks", "tiny_choose")
    assert run.code == 0
    assert "loglikelihood requests" in run.err
    assert "18/18" in run.err
    assert "18/18" not in evaluate("--tasks", "tiny_choose", "--quiet").err
