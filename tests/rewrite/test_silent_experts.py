"""Experts that say nothing of their layout: Llama 4's, which run all at once, and LongCat's, of which some add nothing."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bishare_dsl import compile_spec
from tests.models.test_weights import mixture
from tests.support.checks import randomize
from tests.support.references import reference_model

TEXT = """
spec s
target parent experts, o_proj
share local  per module  rank 1
share outer  A per layer, kind  B per layer, kind, expert  rank 2  where expert != none
"""


SETTINGS = {
    "llama4_text": {"intermediate_size_mlp": 48, "num_experts_per_tok": 1},
    "longcat_flash": {
        "n_routed_experts": 4,
        "zero_expert_num": 2,
        "moe_topk": 2,
        "ffn_hidden_size": 48,
        "expert_ffn_hidden_size": 24,
        "num_layers": 2,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "num_key_value_heads": 4,
    },
}


def logits(model: Any) -> Tensor:
    ids = torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(7))
    return model(ids).logits


@pytest.mark.parametrize("family", SETTINGS)
def test_terms_are_added_to_what_each_expert_computes(family: str, tmp_path: Path) -> None:
    base = mixture(family, **SETTINGS[family])
    with torch.no_grad():
        plain = logits(base)
        model = compile_spec(TEXT, mixture(family, **SETTINGS[family]))
        assert torch.equal(logits(model), plain)
        plan = model.bishare.plan
        assert sum(site.expert is not None for site in plan.sites) == plan.base.layers * 4 * 3
        tensors = randomize(model, 1, frozen=False)
        expected = logits(reference_model(base, plan, tensors))
        assert (expected - plain).abs().max() > 1e-2
        torch.testing.assert_close(logits(model), expected)
    logits(model).sum().backward()
    assert all(tensor.grad is not None for tensor in tensors.values())
    import peft

    model.bishare.export(tmp_path / "lora")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = peft.PeftModel.from_pretrained(
            mixture(family, **SETTINGS[family]), tmp_path / "lora"
        ).eval()
    with torch.no_grad():
        torch.testing.assert_close(logits(loaded), expected, rtol=1e-4, atol=1e-4)
        merged = model.bishare.merge_and_unload()
        torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)
