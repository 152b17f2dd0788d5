"""``bishare eval``, on a tiny checkpoint."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from bishare_dsl import compile_spec, load_adapter, plan_spec
from bishare_dsl.folder.files import save_library
from bishare_dsl.initial.values import draw
from bishare_dsl.models.load import load_model
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.testing.tokenizer import tiny_tokenizer
from bishare_dsl.train import loss


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a checkpoint and two adapters that do something."""
    folder = tmp_path_factory.mktemp("made")
    model = tiny_model("llama", max_position_embeddings=128)
    model.save_pretrained(folder / "tiny")
    tiny_tokenizer().save_pretrained(folder / "tiny")
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


OPTIONS = ["a", "bc", "bd"]


def write_rows(file, begin, count):
    rows = [
        {"prompt": f"{begin}{i}: ", "completion": OPTIONS[i % 3], "options": OPTIONS}
        for i in range(count)
    ]
    Path(file).write_text("\n".join(map(json.dumps, rows)))
    return rows


def test_correct_options_are_counted(work, bishare, monkeypatch):
    rows = write_rows("rows.jsonl", "", 9)
    words = ("eval", "one", "two", "--model", "tiny", "--data", "rows.jsonl", "--json")
    run = bishare(*words, "--base")
    found = json.loads(run.out)
    assert run.code == 0
    assert [*found["accuracy"]] == ["base", "one", "two"]
    model, tokenizer = load_model("tiny")
    load_adapter("one", model)
    right = 0
    for row in rows:
        scores = []
        for option in OPTIONS:
            start = len(tokenizer(row["prompt"]).input_ids)
            ids = [*tokenizer(row["prompt"] + option).input_ids, tokenizer.eos_token_id]
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            scores.append([float(logits[i - 1, ids[i]]) for i in range(start, len(ids))])
        # The first token decides between "a" and "b", the second between "bc" and "bd".
        best = 0 if scores[0][0] > scores[1][0] else max((1, 2), key=lambda i: scores[i][1])
        right += OPTIONS[best] == row["completion"]
    assert found["accuracy"]["one"] == right / 9
    run = bishare("eval", "one", "--model", "tiny", "--data", "rows.jsonl")
    assert f"{right / 9:.1%}" in run.out
    assert bishare("compile", "lora", "--model", "tiny", "--out", "fresh").code == 0
    # It names its base.
    assert bishare("eval", "--adapter", "fresh", "--data", "rows.jsonl").code == 0
    for wrong in ("", "--data nowhere", "--data rows.jsonl --tasks x"):
        assert bishare("eval", "one", "--model", "tiny", *wrong.split()).code == 2
    assert bishare(*words, "--batch_size", "0").code == 2
    sizes, real = [], loss.choice_accuracy

    def stopped(model, examples, collator, batch):
        sizes.append(batch)
        if len(sizes) == 4:
            raise KeyboardInterrupt
        return real(model, examples, collator, batch)

    monkeypatch.setattr(loss, "choice_accuracy", stopped)
    assert json.loads(bishare(*words).out)["accuracy"]["one"] == right / 9
    run = bishare(*words, "--batch_size", "2")
    assert (run.code, sizes) == (130, [16, 16, 2, 2])
    assert json.loads(run.out)["accuracy"] == {"one": right / 9}
    Path("rows.jsonl").write_text('{"prompt": "a", "completion": "b"}')
    assert "BS711" in bishare("eval", "one", "--model", "tiny", "--data", "rows.jsonl").err


def test_each_adapter_is_judged_on_its_file_of_a_folder_and_the_base_on_all(work, bishare):
    Path("held").mkdir()
    for name, count in (("one", 6), ("two", 4)):
        write_rows(f"held/{name}.jsonl", name, count)
    words = ("--base", "--model", "tiny", "--json", "--data")
    found, right = json.loads(bishare("eval", "one", "two", *words, "held").out), 0.0
    assert found["rows"] == {"base": 10, "one": 6, "two": 4}
    for name in ("one", "two"):
        alone = json.loads(bishare("eval", name, *words, f"held/{name}.jsonl").out)
        assert found["accuracy"][name] == alone["accuracy"][name]
        assert alone["rows"] == found["rows"][name]
        right += alone["accuracy"]["base"] * alone["rows"]
    assert found["accuracy"]["base"] == pytest.approx(right / 10)
    Path("held/two.jsonl").unlink()
    run = bishare("eval", "one", "two", "--model", "tiny", "--data", "held")
    assert all(said in run.err for said in ("BS701", "two.jsonl"))


def test_a_library_stands_for_all_its_adapters(work, bishare):
    text = "spec s\ntarget q_proj\nshare a  A per kind  B per adapter, module  rank 2"
    plan = plan_spec(text, "tiny")
    tensors = draw(plan, 0)
    save_library("lib", plan, {"one": tensors, "two": tensors}, text, seed=0)
    write_rows("held.jsonl", "one", 6)
    run = bishare("eval", "lib", "--model", "tiny", "--data", "held.jsonl", "--json")
    assert json.loads(run.out)["accuracy"].keys() == {"lib#one", "lib#two"}


TWO_SHARES = """
spec two
target q_proj, up_proj
share near  per module  rank 2
share far  per kind  rank 3
"""


def test_a_row_without_each_share_is_the_adapter_whose_share_adds_nothing(work, bishare):
    """Compared with copies of the adapter in which the share's tensors are zero."""
    rows = write_rows("held.jsonl", "", 30)
    model, _ = load_model("tiny")
    compile_spec(TWO_SHARES, model)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in model.bishare.tensors().values():
            tensor.copy_(torch.randn(tensor.shape, generator=random))
    model.bishare.save_pretrained("both")
    for share in ("near", "far"):
        kept = {}
        with torch.no_grad():
            for name, tensor in model.bishare.tensors().items():
                if name.startswith(f"{share}."):
                    kept[name] = tensor.clone()
                    tensor.zero_()
            model.bishare.save_pretrained(f"no-{share}")
            for name, value in kept.items():
                model.bishare.tensors()[name].copy_(value)
    words = ("--data", "held.jsonl", "--base", "--json", "--model", "tiny")
    found = json.loads(bishare("eval", "both", "one", "--ablate", *words).out)
    want = json.loads(bishare("eval", "both", "one", "no-near", "no-far", *words).out)["accuracy"]
    without = {"near": want["no-near"], "far": want["no-far"]}
    assert len({want["both"], *without.values()}) > 1
    assert found["without"] == {"both": without, "one": {"local": want["base"]}}
    assert found["accuracy"] == {name: want[name] for name in ("base", "both", "one")}
    assert found["rows"] == len(rows)
    table = bishare("eval", "both", "--ablate", *words[:2]).out
    assert [line.split("  ")[0] for line in table.splitlines()[2:]] == [
        "both",
        "both without near",
        "both without far",
    ]
    run = bishare("eval", "--ablate", *words)
    assert run.code == 2
    assert "--ablate needs an adapter" in run.out


def test_an_interrupted_ablation_prints_what_is_done(work, bishare, monkeypatch):
    write_rows("held.jsonl", "", 6)
    calls, real = [], loss.choice_accuracy

    def stopped(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(loss, "choice_accuracy", stopped)
    words = ("--ablate", "--model", "tiny", "--data", "held.jsonl", "--json")
    run = bishare("eval", "one", "two", *words)
    assert run.code == 130
    found = json.loads(run.out)
    assert found["accuracy"].keys() == {"one"}
    assert found["without"].keys() == {"one"}
