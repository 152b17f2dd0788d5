"""``bishare eval``, on a tiny checkpoint and tasks with local data."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bishare_dsl import compile_spec, load_adapter
from bishare_dsl.models.load import load_model
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer
from bishare_dsl.train import choices
from tests.support.tasks import tiny_tasks


@pytest.fixture(autouse=True)
def no_look_around(monkeypatch):
    """lm_eval lists every installed package into each result, which takes seconds."""
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a checkpoint, tasks, and two adapters that do something."""
    folder = tmp_path_factory.mktemp("made")
    model = tiny_model("llama", max_position_embeddings=128)
    model.save_pretrained(folder / "tiny")
    tiny_tokenizer().save_pretrained(folder / "tiny")
    tiny_tasks(folder / "tasks", rows=6)
    random = torch.Generator().manual_seed(0)
    for name in ("one", "two"):
        compile_spec("lora", model)
        with torch.no_grad():
            for tensor in model.bishare.tensors().values():
                tensor.copy_(0.5 * torch.randn(tensor.shape, generator=random))
        model.bishare.save_pretrained(folder / name)
        model.bishare.unload()
    return folder


@pytest.fixture
def work(made, here):
    """The current folder, with all of that."""
    shutil.copytree(made, here, dirs_exist_ok=True)
    return here


@pytest.fixture
def evaluate(bishare):
    def run(*arguments):
        more = [] if "--include_path" in arguments else ["--include_path", "tasks"]
        return bishare("eval", *arguments, "--model", "tiny", *more)

    return run


def test_models_stand_side_by_side_as_lm_eval_has_them_when_they_are_merged(
    work, evaluate, bishare
):
    run = evaluate("one", "two", "--base", "--tasks", "tiny_choose,tiny_write", "--json")
    data = json.loads(run.out)
    assert (run.code, data["models"], data["problems"]) == (0, ["base", "one", "two"], [])
    bishare("merge", "two", "--model", "tiny", "--out", "merged")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    for where in ({"pretrained": "merged"}, {"pretrained": "tiny", "peft": "two"}):
        expected = simple_evaluate(
            model=HFLM(**where, device="cpu"),
            tasks=["tiny_choose", "tiny_write"],
            task_manager=TaskManager(include_path="tasks", include_defaults=False),
        )["results"]
        for row in data["rows"]:
            key = f"{row['metric']},{row['filter']}"
            assert row["scores"]["two"]["value"] == expected[row["task"]][key]
    accuracies = {label: score["value"] for label, score in data["rows"][0]["scores"].items()}
    assert len(set(accuracies.values())) == 3, accuracies  # The three do differ.


def test_options_are_lm_eval_s(work, evaluate):
    run = evaluate(
        *("one", "--tasks", "tiny_choose, tiny_write", "--quiet", "--batch_size", "auto"),
        *("--output_path", "out", "--log_samples", "--limit", "4", "--num_fewshot", "1"),
        *("--set", 'gen_kwargs={"temperature": 0.5}', "--set", "fewshot_random_seed=3"),
    )
    assert (run.code, run.err) == (0, "")
    head, _, *rows = run.out.splitlines()
    assert head.split() == ["task", "n-shot", "metric", "one"]
    assert [row.split()[1] for row in rows] == ["1"] * 3
    [file] = (work / "out/one").glob("results_*.json")
    kept = json.loads(file.read_text())
    assert kept["config"]["model_args"] == {"pretrained": "tiny", "peft": "one"}
    assert kept["config"]["gen_kwargs"] == {"temperature": 0.5}
    assert kept["config"]["fewshot_seed"] == 3
    [samples, _] = (work / "out/one").glob("samples_*.jsonl")
    assert len(samples.read_text().splitlines()) == 4


def test_without_an_adapter_it_is_the_base(work, evaluate):
    run = evaluate("--tasks", "tasks/tiny_choose.yaml", "--dtype", "bfloat16", "--json")
    assert json.loads(run.out)["models"] == ["base"]


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (RuntimeError("out of memory"), 1)]
)
def test_what_was_finished_is_told(work, evaluate, monkeypatch, error, code):
    from bishare_dsl.evaluate import measure

    real = measure.simple_evaluate

    def fail_later(**settings):
        if settings["model_args"]["peft"] == "two":
            raise error
        return real(**settings)

    monkeypatch.setattr(measure, "simple_evaluate", fail_later)
    run = evaluate("one", "two", "--tasks", "tiny_choose", "--json")
    assert run.code == code
    data = json.loads(run.out)
    assert data["models"] == ["one"]
    assert [problem["message"] for problem in data["problems"]] == (
        ["`two` failed: out of memory"] if code == 1 else []
    )
    run = evaluate("two", "--tasks", "tiny_choose")
    assert (run.code, run.out) == (code, "")


def test_likelihoods_that_are_no_numbers_are_told(work, evaluate):
    from safetensors.torch import load_file, save_file

    file = work / "tiny/model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"][5] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    run = evaluate("--tasks", "tiny_choose", "--output_path", "out", "--log_samples")
    assert run.code == 0
    assert "warning[BS809]: 18 likelihoods of base are not numbers (NaN)" in run.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], "BS901", "--tasks"),
        (["--tasks", "x", "--log_samples"], "BS901", "--output_path"),
        (["--tasks", "x", "--set", "warm"], "BS901", "name=value"),
        (["--tasks", "x", "--limit", "0"], "BS901", "limit"),
        (["--tasks", "x", "--include_path", "nowhere"], "BS901", "nowhere"),
        (["nowhere", "--tasks", "x"], "BS601", "nowhere"),
        (["--tasks", "tiny_chose"], "BS802", "tiny_choose"),
    ],
)
def test_what_cannot_be_is_wrong_usage(work, evaluate, monkeypatch, arguments, code, said):
    if code == "BS802":  # Reading all of lm_eval's task files takes long.
        monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(work / "tasks/manager.py"))
    run = evaluate(*arguments)
    assert (run.code, run.out) == (2, "")
    assert f"error[{code}]" in run.err
    assert said in run.err
    assert "loading tiny" not in run.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "warm=1"], "unexpected keyword argument 'warm'"),
        (["--apply_chat_template"], "chat_template is not set"),
    ],
)
def test_what_lm_eval_refuses_is_told(work, evaluate, arguments, said):
    run = evaluate("--tasks", "tiny_choose", *arguments)
    assert run.code == 1
    assert "error[BS806]: `base` failed: " in run.err
    assert said in run.err


def test_a_model_without_weights_is_told_before_tasks_are_looked_up(bishare, here):
    run = bishare("eval", "--model", "llama-7b", "--tasks", "piqa")
    assert run.code == 2
    assert run.err.startswith("error[BS512]")


def test_help_is_quick():
    program = (
        "import sys; from bishare_dsl.cli.main import main; code = main(sys.argv[1:]);"
        "sys.exit(code or bool({'torch', 'lm_eval', 'transformers', 'rich'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program, "eval", "--help"], check=False)
    assert run.returncode == 0


def test_rows_with_options_are_counted_without_lm_eval(work, bishare, monkeypatch):
    options = ["a", "bc", "bd"]
    rows = [
        {"prompt": f"{i}: ", "completion": options[i % 3], "options": options} for i in range(9)
    ]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = bishare(
        "eval", "one", "two", "--base", "--model", "tiny", "--data", "rows.jsonl", "--json"
    )
    found = json.loads(run.out)
    assert run.code == 0
    assert [*found["accuracy"]] == ["base", "one", "two"]
    model, tokenizer = load_model("tiny")
    load_adapter("one", model)
    right = 0
    for row in rows:
        scores = []
        for option in options:
            start = len(tokenizer(row["prompt"]).input_ids)
            ids = [*tokenizer(row["prompt"] + option).input_ids, tokenizer.eos_token_id]
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            scores.append([float(logits[i - 1, ids[i]]) for i in range(start, len(ids))])
        # The first token decides between "a" and "b", the second between "bc" and "bd".
        best = (
            options[0]
            if scores[0][0] > scores[1][0]
            else max(options[1:], key=lambda option: scores[options.index(option)][1])
        )
        right += best == row["completion"]
    assert found["accuracy"]["one"] == right / 9
    run = bishare("eval", "one", "--model", "tiny", "--data", "rows.jsonl")
    assert f"{right / 9:.1%}" in run.out
    for words in (
        (),
        ("--data", "rows.jsonl", "--tasks", "x"),
        ("--data", "rows.jsonl", "--limit", "3"),
    ):
        run = bishare("eval", "one", "--model", "tiny", *words)
        assert (run.code, "--tasks" in run.err) == (2, True)
    words = ("eval", "one", "two", "--model", "tiny", "--data", "rows.jsonl", "--json")
    assert bishare(*words, "--batch_size", "0").code == 2
    sizes, real = [], choices.choice_accuracy

    def stopped(model, examples, collator, batch):
        sizes.append(batch)
        if len(sizes) == 4:
            raise KeyboardInterrupt
        return real(model, examples, collator, batch)

    monkeypatch.setattr(choices, "choice_accuracy", stopped)
    assert json.loads(bishare(*words).out)["accuracy"]["one"] == right / 9
    run = bishare(*words, "--batch_size", "2")
    assert (run.code, sizes) == (130, [16, 16, 2, 2])
    assert json.loads(run.out)["accuracy"] == {"one": right / 9}
    Path("rows.jsonl").write_text('{"prompt": "a", "completion": "b"}')
    assert "BS711" in bishare("eval", "one", "--model", "tiny", "--data", "rows.jsonl").err
