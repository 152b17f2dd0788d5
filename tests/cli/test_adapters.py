"""inspect, merge and export, on an adapter of a tiny model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from bishare_dsl import compile_spec, load_adapter
from bishare_dsl.models import load_model


@pytest.fixture(scope="module")
def trained(checkpoint, tmp_path_factory):
    """An adapter that does something, and the logits of the model with it."""
    model, _ = load_model(str(checkpoint))
    compile_spec("bishare_ke", model, params={"size": 4, "shared_rank": 16})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and name.endswith("__B"):
                parameter.normal_(0, 0.1, generator=generator)
    folder = tmp_path_factory.mktemp("trained") / "adapter"
    model.bishare.save_pretrained(folder)
    return folder, model(IDS).logits.detach()


IDS = torch.arange(12).view(2, 6)


def test_inspect_tells_what_is_in_it_and_what_is_none(bishare, trained, here):
    run = bishare("inspect", trained[0])
    assert (run.code, run.err) == (0, "")
    for said in ("trainable params: ", "written by: bishare ", "all as they were saved"):
        assert said in run.out
    data = json.loads(bishare("inspect", trained[0], "--json").out)
    assert data["config"]["format"] == 7
    assert data["trainable"] == sum(share["trainable"] for share in data["shares"])
    with Path(shutil.copytree(trained[0], "changed"), "adapter_model.safetensors").open(
        "r+b"
    ) as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    run = bishare("inspect", "changed")
    assert (run.code, run.out, "error[BS607]" in run.err) == (1, "", True)
    Path("empty").mkdir()
    assert (bishare("inspect", "nowhere").code, bishare("inspect", "empty").code) == (2, 2)


def test_merge_gives_a_checkpoint_that_needs_no_bishare(bishare, trained, checkpoint, here):
    folder, logits = trained
    run = bishare("merge", folder, "--model", checkpoint, "--out", "merged", "--json", "--quiet")
    assert (run.code, run.err) == (0, "")
    merge = json.loads(run.out)
    assert merge["modules"] == 10
    assert merge["max_rounding"] == 0
    merged = AutoModelForCausalLM.from_pretrained(here / "merged")
    torch.testing.assert_close(merged(IDS).logits, logits, rtol=1e-4, atol=1e-4)
    assert [path.name for path in here.iterdir()] == ["merged"]


def test_what_is_no_matrix_is_refused_before_loading(bishare, checkpoint, here):
    (here / "e.share").write_text("spec e target q_proj share s per module rank 2 via Experts")
    assert bishare("compile", "e.share", "--model", checkpoint, "--out", "experts").code == 0
    assert bishare("inspect", "experts").code == 0
    for command in ("merge", "convert"):
        run = bishare(command, "experts", "--model", checkpoint, "--out", "result")
        assert run.code == 1
        assert "error[BS633]" in run.err
        assert "share `s`" in run.err
        assert "loading" not in run.err
    assert not (here / "result").exists()


def test_merge_says_what_it_keeps_and_what_keeps_more(bishare, trained, checkpoint, here):
    """The update is made small, so that bfloat16 loses most of it."""
    model, _ = load_model(str(checkpoint))
    load_adapter(trained[0], model)
    with torch.no_grad():
        for tensor in model.bishare.tensors().values():
            tensor.mul_(0.02 if tensor.requires_grad else 1)
    model.bishare.save_pretrained(here / "small")
    found = {}
    for out, dtype in (("near", "bfloat16"), ("full", "float32")):
        words = ("--model", checkpoint, "--out", out, "--dtype", dtype, "--json", "--quiet")
        run = bishare("merge", "small", *words)
        assert run.code == 0, run.err
        found[out] = json.loads(run.out)
    assert min(found["near"]["kept"].values()) < 0.9
    (problem,) = found["near"]["problems"]
    assert (problem["code"], problem["severity"]) == ("BS639", "warning")
    assert "--dtype float32" in problem["help"]
    assert (found["full"]["form"], set(found["full"]["kept"].values())) == ("float32", {1.0})


def test_what_peft_gets_is_loaded_by_peft(bishare, trained, checkpoint, here):
    import peft

    folder, logits = trained
    command = ["convert", folder, "--model", checkpoint, "--out", "lora"]
    run = bishare(*command)
    assert run.code == 0
    assert run.err.startswith("converting for peft ...\n")
    # 2 + 4 + 16 rows, and a Kronecker product of factors 4 wide has no higher rank than 4.
    assert "at rank 10 to lora; vLLM needs --max-lora-rank 16" in run.out
    assert "10 modules have fewer rows than the sum of their ranks" in run.out
    assert "read again: the updates of all modules are equal" in run.out
    base = AutoModelForCausalLM.from_pretrained(checkpoint)
    model = peft.PeftModel.from_pretrained(base, here / "lora")
    torch.testing.assert_close(model(IDS).logits, logits, rtol=1e-4, atol=1e-4)
    assert bishare(*command).code == 2
    assert json.loads(bishare(*command, "-o", "b", "--json").out)["max_lora_rank"] == 16


def test_old_commands_say_what_to_type(bishare, here):
    for old, new in (("export", "DIR --out LORA`"), ("import", "LORA --for bishare")):
        run = bishare(old, "lora", "--out", "ours")
        assert (run.code, f"`bishare convert {new}" in run.err) == (2, True)


def test_a_rank_says_what_it_loses(bishare, trained, checkpoint, here):
    command = ["convert", trained[0], "--model", checkpoint, "--rank", "4", "--dtype", "bfloat16"]
    run = bishare(*command, "--out", "small")
    assert run.code == 0
    assert "at rank 4 to small; vLLM needs --max-lora-rank 8" in run.out
    assert "read again: the updates differ by 0." in run.out
    data = json.loads(bishare(*command, "--out", "again", "--json").out)
    errors = [site["error"] for site in data["sites"]]
    assert len(errors) == data["modules"] == 10
    assert 0 < data["total_error"] < data["worst_error"] == max(errors) < 1
    assert {site["rank"] for site in data["sites"]} == {4}


def test_a_file_for_llama_cpp(bishare, trained, checkpoint, here):
    command = ["convert", trained[0], "--model", checkpoint, "--for", "gguf", "--out", "my.gguf"]
    run = bishare(*command)
    assert run.code == 0
    assert "to my.gguf" in run.out
    assert "vLLM" not in run.out
    assert (here / "my.gguf").read_bytes()[:4] == b"GGUF"
    run = bishare(*command)
    assert (run.code, "error[BS618]" in run.err, "--force" in run.err) == (2, True, False)
    run = bishare("convert", "my.gguf", "--model", checkpoint, "--out", "back")
    assert (run.code, "convert the folder that this one was made from" in run.err) == (2, True)


def test_a_lora_becomes_an_adapter(bishare, trained, checkpoint, here):
    folder, logits = trained
    assert bishare("convert", folder, "--model", checkpoint, "--out", "lora").code == 0
    # The LoRA names its base, which is the checkpoint.
    run = bishare("convert", "lora", "--for", "bishare", "--out", "ours")
    assert run.code == 0
    assert run.err.startswith("converting for bishare ...\n")
    assert run.err.endswith("saved in ours\n")
    config = json.loads((here / "ours" / "adapter_config.json").read_text())
    assert run.out == config["spec"]
    assert "share lora  per module  rank 10  scale 1" in run.out
    for adapter in ("ours", "lora"):  # What takes an adapter takes a LoRA of PEFT, and its base.
        assert bishare("merge", adapter, "--out", f"merged-{adapter}").code == 0
        merged = AutoModelForCausalLM.from_pretrained(here / f"merged-{adapter}")
        torch.testing.assert_close(merged(IDS).logits, logits, rtol=1e-4, atol=1e-4)
    below = bishare("convert", "lora", "--for", "bishare", "--out", "ours/adapter_config.json/x")
    assert (below.code, "error[BS616]" in below.err) == (2, True)
    again = ("convert", "lora", "--for", "bishare", "-o", "ours", "-m", checkpoint)
    assert bishare(*again).code == 2
    assert json.loads(bishare(*again, "--force", "--json").out)["spec"] == run.out


def test_without_a_base_it_says_so(bishare, trained, checkpoint, here):
    assert bishare("convert", trained[0], "--model", checkpoint, "--out", "lora").code == 0
    path = here / "lora" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "base_model_name_or_path": None}))
    for words in (("convert", "lora", "--for", "bishare"), ("merge", "lora")):
        run = bishare(*words, "--out", "ours")
        assert run.code == 2
        assert "the adapter names no base: give --model" in run.err
    path.write_text(json.dumps({**config, "base_model_name_or_path": "x\nerror[BS000]: \x1b[2J"}))
    run = bishare("convert", "lora", "--for", "bishare", "--out", "ours")
    assert run.code == 2
    assert all(
        line.startswith(("converting for", "error[BS5", "  = help"))
        for line in run.err.splitlines()
    )
    assert "\x1b" not in run.err
    run = bishare("convert", "nowhere", "--for", "bishare", "--out", "ours", "--model", checkpoint)
    assert run.code == 2
    assert "error[BS601]" in run.err
    assert not (here / "ours").exists()


CARD = """---
license: other
license_name: custom
license_link: https://example.org/licence
language: [en, de]
datasets: [me/rows]
tags: [poems]
base_model: me/base
metrics: [bleu]
---
# Poems
"""


@pytest.mark.parametrize("middle", ["peft", "vllm", "sglang", "gguf", "bishare"])
def test_who_made_it_and_on_what_goes_along(bishare, trained, checkpoint, here, middle):
    """From PEFT's folder into each layout, and from there into PEFT's and into bishare's."""
    assert bishare("convert", trained[0], "--model", checkpoint, "--out", "lora").code == 0
    path = here / "lora" / "adapter_config.json"
    config = json.loads(path.read_text())
    stated = {"base_model_name_or_path": "me/base", "revision": "v1", "task_type": "CAUSAL_LM"}
    path.write_text(json.dumps(config | stated))
    (here / "lora" / "README.md").write_text(CARD)
    place = "x.gguf" if middle == "gguf" else "x"
    base = ("--model", checkpoint)
    run = bishare("convert", "lora", "--for", middle, "--out", place, *base)
    assert run.code == 0, run.err
    assert "not carried over: `metrics` of its card, the text of its card" in run.err
    assert ("`task_type`" in run.err) == (middle == "gguf")
    if middle == "gguf":
        from gguf import GGUFReader

        fields = {n: f.contents() for n, f in GGUFReader(here / place).fields.items()}
        assert fields["general.base_model.0.name"] == "me/base"
        assert fields["general.license.name"] == "custom"
        assert fields["general.languages"] == ["en", "de"]
        return
    for last in ("peft", "bishare"):
        assert bishare("convert", place, "--for", last, "--out", last, *base).code == 0
        config = json.loads((here / last / "adapter_config.json").read_text())
        for field, value in stated.items():
            assert config[field] == value
        front = yaml.safe_load((here / last / "README.md").read_text().split("---\n")[1])
        assert (front["license"], front["license_name"]) == ("other", "custom")
        assert front["license_link"] == "https://example.org/licence"
        assert (front["language"], front["datasets"]) == (["en", "de"], ["me/rows"])
        assert "poems" in front["tags"]
        assert ("bishare" in front["tags"]) == (last == "bishare" or middle == "bishare")
        run = bishare("inspect", last) if last == "bishare" else None
        assert run is None or run.code == 0, run.err
