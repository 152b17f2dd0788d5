import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from bishare_dsl import load_adapter
from bishare_dsl.testing.models import tiny_model


@pytest.fixture
def lora(bishare, here, checkpoint):
    """An adapter of the tiny checkpoint that does something."""
    (here / "lora.share").write_text(
        "spec lora\ntarget q_proj, v_proj, down_proj\nshare own per module rank 2\n"
        "share all per model rank 2 via SS\n"
    )
    assert bishare("compile", "lora.share", "--model", checkpoint, "--out", "fresh", "-q").code == 0
    model = load_adapter(here / "fresh", tiny_model("llama"))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.bishare.tensors().items():
            if name.endswith("B"):
                tensor.normal_(0, 0.3)
    model.bishare.save_pretrained(here / "lora")
    return here / "lora"


def test_it_tells_what_common_factors_keep(bishare, here, checkpoint, lora):
    run = bishare("analyse", lora, "--model", checkpoint, "--json")
    assert run.code == 0, run.err
    analysis = json.loads(run.out)
    assert analysis["problems"] == []
    (adapter,) = analysis["adapters"]
    assert adapter["starts_known"]
    (row,) = [r for r in adapter["joint"] if (r["key"], r["common"]) == ("model", "A and B")]
    assert 0 < row["kept"] <= 1
    assert row["kept_by_rank"]["1"] <= row["kept_by_rank"]["4"] == row["kept"]
    assert {kind["kind"] for kind in adapter["kinds"]} == {"q_proj", "v_proj", "down_proj", "all"}
    again = bishare("analyse", lora, "--model", checkpoint)
    assert again.code == 0
    assert again.out.startswith(analysis["finding"])
    assert "kept at rank 4" in again.out
    assert "own's part" in again.out


def test_what_is_wrong_is_located_and_coded(bishare, here, checkpoint, lora):
    run = bishare("analyse", "nowhere", "--model", checkpoint)
    assert (run.code, "BS601" in run.err, "nowhere" in run.err) == (2, True, True)
    run = bishare("analyse", lora, "--model", "llama-7b")
    assert (run.code, "BS613" in run.err) == (1, True)
    run = bishare("analyse", here / "fresh", "--model", checkpoint)
    assert (run.code, "BS850" in run.err, "fresh" in run.err) == (1, True, True)


def test_a_broken_peft_folder(bishare, here, checkpoint, lora):
    (here / "peft").mkdir()
    (here / "peft" / "adapter_config.json").write_text("{")
    run = bishare("analyse", here / "peft", "--model", checkpoint)
    assert (run.code, "BS604" in run.err) == (1, True)


def test_the_starts_of_an_import_are_not_known(bishare, here, checkpoint, lora):
    """Its seed drew none of its tensors."""
    assert bishare("export", lora, "--model", checkpoint, "--out", "peft", "-q").code == 0
    run = bishare("analyse", "peft", "--model", checkpoint)
    assert run.code == 0, run.err
    assert "The initial values of A are unknown" in run.out
    tensors = load_file(here / "peft" / "adapter_model.safetensors")
    for name in tensors:
        tensors[name] = torch.zeros_like(tensors[name])
    save_file(tensors, here / "peft" / "adapter_model.safetensors")
    run = bishare("analyse", "peft", "--model", checkpoint)
    assert (run.code, "BS850" in run.err) == (1, True)


@pytest.mark.parametrize(
    ("value", "code"), [(float("nan"), "BS694"), (float("inf"), "BS694"), (1e30, "BS628")]
)
def test_values_that_are_no_numbers(bishare, here, checkpoint, lora, value, code):
    """Nothing is computed with them, and least of all with others' values."""
    model = load_adapter(lora, tiny_model("llama"))
    with torch.no_grad():
        for name, tensor in model.bishare.tensors().items():
            if name.startswith("own"):
                tensor.fill_(value)
    model.bishare.save_pretrained(here / "spoilt")
    for command in (
        ("analyse", "spoilt"),
        ("fit", lora, "spoilt", "--spec", "lora.share", "--out", "out"),
    ):
        run = bishare(*command, "--model", checkpoint)
        assert run.code == 1, run.err
        assert f"error[{code}]" in run.err
        assert "Traceback" not in run.err
        assert not (here / "out").exists()
