"""The parts that sites play, by family; shipped specs resolve by them."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModel

from bishare_dsl import plan_spec
from bishare_dsl.diagnostics import PlanError
from bishare_dsl.models import Architecture, inspect_model
from bishare_dsl.models.parts import PARTS, parts
from tests.methods.test_every_method import SCALED
from tests.models.test_weights import GATES, mixture
from tests.support.families import TINY_FAMILIES, tiny_model

LLAMA = {
    "attention_inputs": {"q_proj", "k_proj", "v_proj"},
    "attention_outputs": {"o_proj"},
    "mlp_gates": {"gate_proj"},
    "mlp_ups": {"up_proj"},
    "mlp_downs": {"down_proj"},
}
EXPECTED: dict[str, dict[str, set[str]]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma2", *GATES), LLAMA),
    "phi3": {
        "attention_inputs": {"qkv_proj"},
        "attention_outputs": {"o_proj"},
        "mlp_gates": {"gate_up_proj"},
        "mlp_ups": {"gate_up_proj"},
        "mlp_downs": {"down_proj"},
    },
    "gpt2": {
        "attention_inputs": {"c_attn"},
        "attention_outputs": {"c_proj"},
        "mlp_ups": {"c_fc"},
        "mlp_downs": {"c_proj"},
    },
    "opt": {
        "attention_inputs": {"q_proj", "k_proj", "v_proj"},
        "attention_outputs": {"out_proj"},
        "mlp_ups": {"fc1"},
        "mlp_downs": {"fc2"},
    },
    "falcon": {
        "attention_inputs": {"query_key_value"},
        "attention_outputs": {"dense"},
        "mlp_ups": {"dense_h_to_4h"},
        "mlp_downs": {"dense_4h_to_h"},
    },
}
TARGETS = {"tied_lora": ("attention_inputs",), "up_pool": ("mlp_ups",), "ia3": ("mlp_ups",)}
"""Of those that do not adapt all parts."""
NAMED = {"ia3": {"k_proj", "v_proj"}}
"""Kinds that they name besides these parts: phi3 and gpt2 have none of the name."""
MIXTURES = {"mixtral", "qwen2_moe", "gpt_oss"}
"""Models with experts, whose outputs no magnitude scales."""
# A default of theirs does not fit a model as small as these.
SMALLER = {"late_own": {"first": -1}, "vb_lora": {"length": 4}}


def model_of(family: str) -> Any:
    if family in TINY_FAMILIES:
        return tiny_model(family)
    return mixture(family, shared_expert_intermediate_size=24)


@cache
def inspected(family: str) -> Architecture:
    return inspect_model(model_of(family))


@pytest.mark.parametrize("family", EXPECTED)
def test_every_site_plays_the_part_that_its_family_gives_it(family: str) -> None:
    sites = inspected(family).sites
    found = {part: {site.kind for site in sites if part in parts(site)} for part in PARTS}
    assert {part: kinds for part, kinds in found.items() if kinds} == EXPECTED[family]
    assert all(parts(site) for site in sites if "shared_expert_gate" not in site.path)
    attention = {site.path for site in sites if "att" in site.path}
    for site in sites:
        assert (site.path in attention) == any(r.startswith("attention") for r in parts(site))


def test_encoders() -> None:
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


@pytest.mark.parametrize("spec", sorted(path.stem for path in Path("specs").glob("*.share")))
@pytest.mark.parametrize(
    "family", ["llama", "qwen3", "phi3", "gpt2", "mixtral", "qwen2_moe", "gpt_oss"]
)
@pytest.mark.filterwarnings("ignore::bishare_dsl.diagnostics.BishareWarning")
def test_shipped_specs_resolve(spec: str, family: str) -> None:
    model, expected = inspected(family), EXPECTED[family]
    every = ("attention_inputs", "mlp_ups", "mlp_downs")
    kinds = set().union(*(expected[part] for part in TARGETS.get(spec, every)), NAMED.get(spec, ()))
    present = {site.kind for site in model.sites}
    refused = "BS323" if spec in SCALED and family in MIXTURES else None
    if not kinds <= present:
        refused = "BS301"
    if refused:
        with pytest.raises(PlanError) as caught:
            plan_spec(spec, model, params=SMALLER.get(spec))
        assert {problem.code for problem in caught.value.problems} == {refused}
        return
    plan = plan_spec(spec, model, params=SMALLER.get(spec))
    assert {site.kind for site in plan.sites} == kinds
    assert all(plan.terms_of[site.path] for site in plan.sites)


def test_a_part_in_conditions_and_keys() -> None:
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
