"""Experts that say nothing of their layout: Llama 4's, which run all at once, and LongCat's, of which some add nothing."""

import pytest

from bishare_dsl import parse_spec, plan_spec
from tests.models.test_weights import mixture
from tests.support.checks import check_spec

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
        "num_layers": 2,
        "ffn_hidden_size": 48,
        "expert_ffn_hidden_size": 24,
        "num_key_value_heads": 4,
        **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "v_head_dim"), 8),
        **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim"), 8),
    },
}


@pytest.mark.parametrize("family", SETTINGS)
def test_terms_are_added_to_what_each_expert_computes(family):
    model, spec = mixture(family, **SETTINGS[family]), parse_spec(TEXT)
    plan = plan_spec(spec, model)
    assert sum(site.expert is not None for site in plan.sites) == plan.base.layers * 4 * 3
    check_spec(spec, model)
