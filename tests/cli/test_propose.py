import json
import shutil
import signal

import pytest
import torch

from bishare_dsl.testing.tokenizer import tiny_tokenizer


@pytest.fixture
def lora(bishare, here, checkpoint):
    """An adapter whose modules share an A in each layer."""
    from bishare_dsl import load_adapter
    from bishare_dsl.testing.models import tiny_model

    (here / "planted.share").write_text(
        "spec planted\ntarget q_proj, k_proj, v_proj, down_proj\n"
        "share one  A per layer, in  B per module  rank 2\n"
    )
    assert (
        bishare("compile", "planted.share", "--model", checkpoint, "--out", "lora", "-q").code == 0
    )
    model = load_adapter(here / "lora", tiny_model("llama"))
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in model.bishare.tensors().values():
            tensor.normal_(0, 0.3)
    model.bishare.save_pretrained(here / "lora")
    return here / "lora"


def size(bishare, spec, checkpoint):
    return json.loads(bishare("plan", spec, "--model", checkpoint, "--json").out)["trainable"]


def test_from_an_adapter(bishare, here, checkpoint, lora):
    budget = size(bishare, "planted.share", checkpoint)
    arguments = ("propose", "--model", checkpoint, "--budget", budget, "--from", lora)
    run = bishare(*arguments, "--out", "my.share")
    assert (run.code, run.out) == (0, "my.share\n")
    assert "weighed, each alone" in run.err
    assert bishare("fmt", "--check", "my.share").code == 0
    assert bishare("check", "my.share", "--model", checkpoint).code == 0
    assert size(bishare, "my.share", checkpoint) <= budget
    text = (here / "my.share").read_text()
    assert "A per layer, in  B per module  rank 2" in text
    run = bishare(*arguments, "--json")
    found = json.loads(run.out)
    assert found["spec"] == text
    assert found["kept"] == pytest.approx(1, abs=1e-3)
    assert found["chance"] < 1
    assert {"key", "rank", "kept", "chance", "parameters", "chosen"} == set(found["weighed"][0])
    best = found["weighed"][0]
    assert (best["key"], best["chosen"]) == ("A per layer, in  B per module", True)
    assert best["chance"] < best["kept"]
    again = bishare(*arguments, "--out", "my.share")
    assert (again.code, "BS909" in again.err) == (2, True)
    assert bishare(*arguments, "--out", "my.share", "--force").code == 0


def test_budgets(bishare, here, checkpoint, lora):
    def budget(words):
        run = bishare("propose", "--model", checkpoint, "--budget", words, "--from", lora, "--json")
        return json.loads(run.out).get("budget")

    lora_8 = sum(8 * sum(w) for w in ((32, 40), (32, 20), (32, 20), (48, 32))) * 2
    assert budget("50%") == lora_8 // 2
    assert budget("2KiB") == 512
    assert budget("1k") == 1000
    whole = size(bishare, "planted.share", checkpoint)
    assert budget("100% of planted.share") == whole
    (here / "lora.share").write_text(
        "spec l\nparam r = 1\ntarget q_proj, k_proj, v_proj, down_proj\nshare own  per module  rank r\n"
    )
    assert budget("50% of lora.share r=8") == lora_8 // 2


@pytest.fixture
def on_rows(here, checkpoint):
    """Arguments for a checkpoint with a tokenizer and 24 rows."""
    shutil.copytree(checkpoint, here / "model")
    tiny_tokenizer().save_pretrained(here / "model")
    rows = [{"text": f"the sum of {i} and {i + 1} is {2 * i + 1}."} for i in range(24)]
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("propose", "--model", here / "model", "--budget", "40%", "--data", "rows.jsonl")
    return (*arguments, "--target", "q_proj, v_proj, up_proj")


def test_from_data(bishare, here, checkpoint, on_rows):
    run = bishare(*on_rows, "--out", "my.share")
    assert run.code == 0, run.err
    text = (here / "my.share").read_text()
    assert "the gradients of 3 batches of rows.jsonl" in " ".join(text.replace("#", "").split())
    assert bishare("check", "my.share", "--model", checkpoint).code == 0
    assert bishare(*on_rows, "--steps", 0).out == text


def test_from_steps_of_training(bishare, here, checkpoint, on_rows, monkeypatch):
    (here / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(here / "tmp"))
    run = bishare(*on_rows, "--steps", 3, "--out", "my.share")
    assert run.code == 0, run.err
    assert "training a LoRA for 3 steps" in run.err
    text = (here / "my.share").read_text()
    said = "the updates of a LoRA of rank 8 after 3 steps on rows.jsonl (starts taken away)"
    assert said in " ".join(text.replace("#", "").split())
    assert bishare("check", "my.share", "--model", checkpoint).code == 0
    assert not [*(here / "tmp").iterdir()]
    again = bishare(*on_rows, "--steps", 3, "--json")
    assert json.loads(again.out)["spec"] == text
    other = json.loads(bishare(*on_rows, "--steps", 3, "--seed", 1, "--json").out)
    assert other["kept"] != json.loads(again.out)["kept"]


def test_training_that_is_interrupted_leaves_nothing(bishare, here, on_rows, monkeypatch):
    from bishare_dsl.train.trainer import AdapterTrainer

    (here / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(here / "tmp"))
    train_step = AdapterTrainer.training_step

    def step(self, *arguments):
        signal.raise_signal(signal.SIGINT)
        return train_step(self, *arguments)

    monkeypatch.setattr(AdapterTrainer, "training_step", step)
    run = bishare(*on_rows, "--steps", 3, "--out", "my.share")
    assert run.code == 130
    assert "error: interrupted" in run.err
    assert not (here / "my.share").exists()
    assert not [*(here / "tmp").iterdir()]


def test_what_is_wrong_is_located_and_coded(bishare, here, checkpoint, lora):
    def run(*arguments, model=checkpoint, budget="40%"):
        found = bishare("propose", "--model", model, "--budget", budget, *arguments)
        return found.code, found.err

    code, said = run()
    assert (code, "give either --from or --data" in said) == (2, True)
    assert run("--from", "nowhere")[0] == 2
    assert "BS601" in run("--from", "nowhere")[1]
    code, said = run("--from", lora, model="llama-7b")
    assert (code, "BS613" in said) == (1, True)
    code, said = run("--from", lora, budget="much")
    assert (code, "BS907" in said) == (2, True)
    code, said = run("--from", lora, budget="10")
    assert (code, "BS851" in said) == (2, True)
    code, said = run("--from", lora, "--target", "q_proj")
    assert (code, "--target goes with --data" in said) == (2, True)
    code, said = run("--from", lora, "--steps", "5")
    assert (code, "BS901" in said, "--steps goes with --data" in said) == (2, True, True)
    code, said = run("--data", "rows.jsonl", "--steps", "-1")
    assert (code, "BS901" in said, "-1 is not in the range" in said) == (2, True, True)
    code, said = run("--data", "rows.jsonl", "--steps", "1")
    assert (code, "2 is the least" in said) == (2, True)
    code, said = run("--data", "rows.jsonl", "--steps", "5", "--device", "cuda:1")
    assert (code, "--device is cpu, cuda or auto" in said) == (2, True)
    code, said = run("--data", "rows.jsonl", "--target", "q_porj")
    assert (code, "BS301" in said) == (1, True)
