"""Adapters of experts whose weights are one parameter: merged and exported, against the dense reference."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bishare_dsl import Plan, plan_spec
from bishare_dsl.adapter import merge as merging
from bishare_dsl.adapter.initial import draw
from bishare_dsl.export.export import export_adapter
from bishare_dsl.testing.reference import reference_model
from tests.models.test_weights import GATES, mixture

SPECS = {
    "shared outer": """
        spec s
        target parent experts
        share x  A per layer, kind  B per layer, kind, expert  rank 2
        """,
    "groups of experts, attention too": """
        spec s
        target parent experts, q_proj
        share local  per module  rank 1
        share some   per expert // 2, kind  rank 3 scale 0.5  via KE(size = 4)  where expert != none
        """,
    "some of them": """
        spec s
        target up_proj, down_proj
        share x  per module  rank 2  where expert in 1..2
        """,
}


def adapter(model: Any, spec: str) -> tuple[Plan, dict[str, Tensor]]:
    plan = plan_spec(SPECS[spec], model)
    torch.manual_seed(1)
    return plan, {name: t + 0.2 * torch.randn(t.shape) for name, t in draw(plan, 0).items()}


def logits(model: Any) -> Tensor:
    ids = torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("family", GATES)
def test_merged(family: str, spec: str) -> None:
    model = mixture(family)
    plan, tensors = adapter(model, spec)
    base = copy.deepcopy(model.state_dict())
    expected = logits(reference_model(model, plan, tensors))
    before = logits(model)
    assert (before - expected).abs().max() > 1e-2
    merging.check(model, plan, tensors, dequantize=False)
    merged = merging.merge(model, plan, tensors, keep_base=True)
    torch.testing.assert_close(logits(model), expected)
    merged.swap(model)
    assert all(torch.equal(value, base[name]) for name, value in model.state_dict().items())
    merged.swap(model)
    torch.testing.assert_close(logits(model), expected)


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("family", GATES)
def test_peft_computes_the_same(family: str, spec: str, uniform: bool, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = mixture(family)
    plan, tensors = adapter(model, spec)
    expected = logits(reference_model(model, plan, tensors))
    report = export_adapter(tmp_path / "peft", plan, tensors, model, uniform_rank=uniform)
    assert {site.path for site in report.sites} == {term.site for term in plan.terms}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=FutureWarning)
        # PEFT looks for the patterns among modules alone, and follows them with parameters too.
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys did not match")
        loaded = peft.PeftModel.from_pretrained(model, tmp_path / "peft").eval()
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-4, atol=1e-4)


def test_equal_rows_of_gate_and_up_are_written_once(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = mixture("qwen3_moe")
    text = "spec s\ntarget gate_proj, up_proj share x A per layer B per module rank 3"
    plan = plan_spec(text, model)
    export_adapter(tmp_path / "peft", plan, draw(plan, 0), model)
    written = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    shapes = {name: tuple(tensor.shape) for name, tensor in written.items()}
    first = "base_model.model.model.layers.0.mlp.experts"
    assert shapes[f"{first}.lora_A.weight"] == (4 * 3, 32)
    assert shapes[f"{first}.lora_B.weight"] == (48, 3 * 4)


def test_vllm_needs_the_rank_of_gate_and_up_together(tmp_path: Path) -> None:
    model = mixture("qwen3_moe")
    plan = plan_spec("spec s\ntarget gate_proj, up_proj share x per module rank 6", model)
    report = export_adapter(tmp_path / "peft", plan, draw(plan, 0), model)
    assert (report.rank, report.max_lora_rank) == (6, 16)
