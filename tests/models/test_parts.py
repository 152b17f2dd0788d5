"""The parts that sites play, by family; shipped specs resolve by them."""

from functools import cache

import pytest
from transformers import AutoConfig, AutoModel

from bishare_dsl import plan_spec
from bishare_dsl.models import inspect_model
from bishare_dsl.models.parts import PARTS, parts
from tests.models.test_weights import GATES, mixture
from tests.support.families import TINY_FAMILIES, tiny_model

LLAMA = ("q_proj k_proj v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# The kinds of each of the first five `PARTS`.
EXPECTED = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma2", *GATES), LLAMA),
    "phi3": ("qkv_proj", "o_proj", "gate_up_proj", "gate_up_proj", "down_proj"),
    "gpt2": ("c_attn", "c_proj", "", "c_fc", "c_proj"),
    "opt": ("q_proj k_proj v_proj", "out_proj", "", "fc1", "fc2"),
    "falcon": ("query_key_value", "dense", "", "dense_h_to_4h", "dense_4h_to_h"),
}


def model_of(family):
    if family in TINY_FAMILIES:
        return tiny_model(family)
    return mixture(family, shared_expert_intermediate_size=24)


@cache
def inspected(family):
    return inspect_model(model_of(family))


@pytest.mark.parametrize("family", EXPECTED)
def test_every_site_plays_the_part_that_its_family_gives_it(family):
    sites = inspected(family).sites
    found = [{site.kind for site in sites if part in parts(site)} for part in PARTS]
    assert found[:5] == [{*kinds.split()} for kinds in EXPECTED[family]]
    assert not any(found[5:])
    assert all(parts(site) for site in sites if "shared_expert_gate" not in site.path)
    attention = {site.path for site in sites if "att" in site.path}
    for site in sites:
        assert (site.path in attention) == any(r.startswith("attention") for r in parts(site))


def test_encoders():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("bert", **sizes, intermediate_size=24, vocab_size=32)
    sites = inspect_model(AutoModel.from_config(config)).sites
    found = {site.path.split(".", 3)[3]: set(parts(site)) for site in sites}
    assert found == {
        **{f"attention.self.{name}": {"attention_inputs"} for name in ("query", "key", "value")},
        "attention.output.dense": {"attention_outputs"},
        "intermediate.dense": {"mlp_ups"},
        "output.dense": {"mlp_downs"},
    }


def test_a_part_in_conditions_and_keys():
    text = """
        spec s
        target attention_inputs, mlp_downs
        share x  A per attention_inputs, in  B per module  rank 2  where not mlp_downs
        share y  A per mlp_downs, in  B per module  rank 1
        """
    plan = plan_spec(text, tiny_model("llama"))
    assert {pool.key for pool in plan.pools if (pool.share, pool.role) == ("x", "A")} == {
        (True, 32)
    }
    assert {pool.key for pool in plan.pools if (pool.share, pool.role) == ("y", "A")} == {
        (False, 32),
        (True, 48),
    }
