"""inspect, merge and export, on an adapter of a tiny model."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from bishare_dsl import compile_spec, load_adapter
from bishare_dsl.models import load_model
from bishare_dsl.testing.models import tiny_model


@pytest.fixture(scope="module")
def trained(checkpoint, tmp_path_factory):
    """An adapter that does something, and the logits of the model with it."""
    model, _ = load_model(str(checkpoint))
    compile_spec("bishare_ke", model, params={"size": 4})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and name.endswith("__B"):
                parameter.normal_(0, 0.1, generator=generator)
    folder = tmp_path_factory.mktemp("trained") / "adapter"
    model.bishare.save_pretrained(folder)
    return folder, model(IDS).logits.detach()


IDS = torch.arange(12).view(2, 6)


def test_inspect_tells_what_is_in_it(bishare, trained):
    folder, _ = trained
    run = bishare("inspect", folder)
    assert (run.code, run.err) == (0, "")
    assert "trainable params: " in run.out
    assert "written by: bishare " in run.out
    assert "all as they were saved" in run.out
    data = json.loads(bishare("inspect", folder, "--json").out)
    assert data["config"]["format"] == 5
    assert data["trainable"] == sum(share["trainable"] for share in data["shares"])


def test_inspect_notices_a_changed_file(bishare, trained, tmp_path):
    folder = shutil.copytree(trained[0], tmp_path / "changed")
    with (folder / "adapter_model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    run = bishare("inspect", folder)
    assert (run.code, run.out) == (1, "")
    assert "error[BS607]" in run.err


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_what_is_no_adapter_is_wrong_usage(bishare, here, folder):
    assert bishare("inspect", folder).code == 2


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
    for command in ("merge", "export"):
        run = bishare(command, "experts", "--model", checkpoint, "--out", "result")
        assert run.code == 1
        assert "error[BS633]" in run.err
        assert "share `s`" in run.err
        assert "loading" not in run.err
    assert not (here / "result").exists()


def test_merge_says_how_exact_it_is(bishare, trained, checkpoint, here):
    run = bishare(
        "merge", trained[0], "--model", checkpoint, "--out", "merged", "--dtype", "bfloat16"
    )
    assert run.code == 0
    assert run.out.startswith("merged 10 modules")
    merged = AutoModelForCausalLM.from_pretrained(here / "merged", dtype="auto")
    assert merged.dtype == torch.bfloat16
    run = bishare("merge", trained[0], "--model", checkpoint, "--out", "merged")
    assert run.code == 2
    assert "error[BS618]" in run.err


def test_merge_says_what_it_keeps_and_what_keeps_more(bishare, trained, checkpoint, here):
    """The update is made small, so that bfloat16 loses most of it."""
    model, _ = load_model(str(checkpoint))
    load_adapter(trained[0], model)
    with torch.no_grad():
        for tensor in model.bishare.tensors().values():
            tensor.mul_(0.02 if tensor.requires_grad else 1)
    model.bishare.save_pretrained(here / "small")
    found = {}
    for out, extra in (("near", ()), ("drawn", ("--round", "stochastic")), ("full", ())):
        dtype = "float32" if out == "full" else "bfloat16"
        run = bishare(
            *("merge", "small", "--model", checkpoint, "--out", out, "--dtype", dtype),
            *(*extra, "--json", "--quiet"),
        )
        assert run.code == 0, run.err
        found[out] = json.loads(run.out)
    assert min(found["near"]["kept"].values()) < 0.9
    (problem,) = found["near"]["problems"]
    assert (problem["code"], problem["severity"]) == ("BS639", "warning")
    assert "--round stochastic" in problem["help"]
    assert (found["full"]["form"], set(found["full"]["kept"].values())) == ("float32", {1.0})
    near, drawn = (sum(found[k]["kept"].values()) for k in ("near", "drawn"))
    assert drawn > near


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_merge_into_a_quantised_checkpoint(bishare, here, form):
    pytest.importorskip("bitsandbytes")
    model = tiny_model("llama", hidden_size=128, head_dim=32, intermediate_size=256)
    model.save_pretrained(here / "base")
    compile_spec("lora", model)
    with torch.no_grad():
        for tensor in model.bishare.tensors().values():
            tensor.normal_(0, 0.2)
    model.bishare.save_pretrained(here / "adapter")
    want = model(IDS + 3).logits
    run = bishare(
        *("merge", "adapter", "--model", "base", "--out", "merged", "--into", form),
        *("--json", "--quiet"),
    )
    assert run.code == 0, run.err
    data = json.loads(run.out)
    assert data["form"] == form
    assert all(0.7 < share < 1.3 for share in data["kept"].values())
    assert sorted(path.name for path in here.iterdir()) == ["adapter", "base", "merged"]
    merged, _ = load_model(str(here / "merged"))
    kind = {"int8": "Linear8bitLt", "nf4": "Linear4bit"}[form]
    assert type(merged.model.layers[0].mlp.up_proj).__name__ == kind
    close = torch.nn.functional.cosine_similarity(merged(IDS + 3).logits, want, dim=-1)
    assert close.median() > 0.8


def test_merge_does_not_quantise_a_gguf_file(bishare, trained, here):
    (here / "a.gguf").write_bytes(b"GGUF")
    run = bishare(
        *("merge", trained[0], "--model", "a.gguf", "--out", "merged", "--into", "nf4"),
    )
    assert (run.code, run.out) == (2, "")
    assert "error[BS901]" in run.err
    assert "the checkpoint that the .gguf file was made from" in run.err


def test_merge_refuses_before_loading(bishare, trained, here):
    run = bishare("merge", trained[0], "--model", "llama-7b", "--out", "merged")
    assert run.code == 1
    assert "error[BS613]" in run.err
    assert "loading" not in run.err
    assert not list(here.iterdir())


def test_an_interrupted_merge_leaves_what_was_there(
    bishare, trained, checkpoint, here, monkeypatch
):
    (here / "merged").mkdir()

    def interrupt(self, folder, **_):
        (folder / "half").write_text("written")
        raise KeyboardInterrupt

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", interrupt)
    run = bishare("merge", trained[0], "--model", checkpoint, "--out", "merged")
    assert run.code == 130
    assert [path.name for path in here.iterdir()] == ["merged"]
    assert not list((here / "merged").iterdir())


def test_export_is_loaded_by_peft(bishare, trained, checkpoint, here):
    peft = pytest.importorskip("peft")
    folder, logits = trained
    command = ["export", folder, "--model", checkpoint, "--out", "lora"]
    run = bishare(*command)
    assert (run.code, run.err) == (0, "writing for peft ...\n")
    # 2 + 4 + 16 rows, and a Kronecker product of factors 4 wide has no higher rank than 4.
    assert "at rank 10 to lora; vLLM needs --max-lora-rank 16" in run.out
    assert "10 modules need fewer rows than the sum of their ranks" in run.out
    base = AutoModelForCausalLM.from_pretrained(checkpoint)
    model = peft.PeftModel.from_pretrained(base, here / "lora")
    torch.testing.assert_close(model(IDS).logits, logits, rtol=1e-4, atol=1e-4)
    assert bishare(*command).code == 2
    assert json.loads(bishare(*command, "-o", "b", "--json").out)["max_lora_rank"] == 16


def test_export_knows_its_formats(bishare, trained, checkpoint, here):
    run = bishare("export", trained[0], "--format", "pft", "-m", checkpoint, "-o", "lora")
    assert run.code == 2
    assert "is not one of 'peft', 'vllm', 'sglang', 'mlx', 'gguf'" in run.err


def test_export_to_a_rank_says_what_that_loses(bishare, trained, checkpoint, here):
    command = ["export", trained[0], "--model", checkpoint, "--rank", "4", "--dtype", "bfloat16"]
    run = bishare(*command, "--out", "small")
    assert run.code == 0
    assert "at rank 4 to small; vLLM needs --max-lora-rank 8" in run.out
    assert "relative error of what is added to the weights: 0." in run.out
    data = json.loads(bishare(*command, "--out", "again", "--json").out)
    errors = {site["path"]: site["error"] for site in data["sites"]}
    assert len(errors) == data["modules"] == 10
    assert 0 < data["total_error"] < data["worst_error"] == max(errors.values()) < 1
    assert {site["rank"] for site in data["sites"]} == {4}


def test_export_writes_a_file_for_llama_cpp(bishare, trained, checkpoint, here):
    command = ["export", trained[0], "--model", checkpoint, "--format", "gguf", "--out", "my.gguf"]
    run = bishare(*command)
    assert run.code == 0
    assert "to my.gguf" in run.out
    assert "vLLM" not in run.out
    assert (here / "my.gguf").read_bytes()[:4] == b"GGUF"
    assert bishare(*command).code == 2
    assert bishare(*command, "-o", "b.gguf", "--uniform-rank").code == 2


def test_import_makes_an_adapter_of_an_export(bishare, trained, checkpoint, here):
    folder, logits = trained
    assert bishare("export", folder, "--model", checkpoint, "--out", "lora").code == 0
    # The export names its base, which is the checkpoint.
    run = bishare("import", "lora", "--out", "ours")
    assert (run.code, run.err) == (0, f"importing for {checkpoint} ...\nsaved in ours\n")
    config = json.loads((here / "ours" / "adapter_config.json").read_text())
    assert run.out == config["spec"]
    assert "share lora  per module  rank 10  scale 1" in run.out
    for adapter in ("ours", "lora"):  # What takes an adapter takes a LoRA of PEFT.
        command = ["merge", adapter, "--model", checkpoint, "--out", f"merged-{adapter}"]
        assert bishare(*command).code == 0
        merged = AutoModelForCausalLM.from_pretrained(here / f"merged-{adapter}")
        torch.testing.assert_close(merged(IDS).logits, logits, rtol=1e-4, atol=1e-4)
    assert bishare("import", "lora", "--out", "ours").code == 2
    data = json.loads(
        bishare("import", "lora", "-o", "ours", "-m", checkpoint, "--force", "--json").out
    )
    assert data["spec"] == run.out


def test_import_needs_a_base(bishare, trained, checkpoint, here):
    assert bishare("export", trained[0], "--model", checkpoint, "--out", "lora").code == 0
    path = here / "lora" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "base_model_name_or_path": None}))
    run = bishare("import", "lora", "--out", "ours")
    assert run.code == 2
    assert "the LoRA names no base: give --model" in run.err
    path.write_text(json.dumps({**config, "base_model_name_or_path": "x\nerror[BS000]: \x1b[2J"}))
    run = bishare("import", "lora", "--out", "ours")
    assert run.code == 2
    assert all(
        line.startswith(("importing for x\\nerror", "error[BS5", "  = help"))
        for line in run.err.splitlines()
    )
    assert "\x1b" not in run.err
    run = bishare("import", "nowhere", "--out", "ours", "--model", checkpoint)
    assert run.code == 1
    assert "error[BS608]" in run.err
    assert not (here / "ours").exists()
