"""`adapter` as a key: one plan for each adapter, which says what adapters share."""

import pytest

from bishare_dsl import plan_spec
from bishare_dsl.diagnostics import PlanError

SPEC = """spec family
target q_proj, down_proj
share own     per adapter, kind              rank 2
share halves  A per module  B per adapter, module  rank 1
share stretched  per layer  rank 4  via KE(size = 64)
share fixed  per adapter, layer  rank 4  via KE(size = 64)  freeze A, K_A
share frozen  per module  rank 4  init B kaiming_normal  freeze A, B  gain rank init 1, out init 0
"""


@pytest.fixture(scope="module")
def plan():
    return plan_spec(SPEC, "smollm2-135m")


def test_outside_of_a_library_the_key_says_nothing_and_what_is_frozen_is_another_plan(plan):
    without = SPEC.replace("per adapter, ", "per ")
    assert plan.digest == plan_spec(without, "smollm2-135m").digest
    assert {name for name in plan.tensor if name.startswith("own.")} == {
        f"own.{kind}.{factor}" for kind in ("q_proj", "down_proj") for factor in "AB"
    }
    trained = SPEC.replace("freeze A, K_A", "freeze A")
    assert plan.digest != plan_spec(trained, "smollm2-135m").digest


def test_what_adapters_share(plan):
    first = {name for name in plan.tensor if ".layers.0." in name or ".layer_0." in name}
    assert {name for name in first & plan.common if "q_proj" in name or "layer_0" in name} == {
        "halves.layers.0.self_attn.q_proj.A",
        "stretched.layer_0.A",
        "stretched.layer_0.B",
        "frozen.layers.0.self_attn.q_proj.A",
        "frozen.layers.0.self_attn.q_proj.B",
        # What the seed draws is alike in all: of pools whose key names it, and of each site's own.
        "fixed.layer_0.A",
        "fixed.layers.0.self_attn.q_proj.K_A",
    }
    # Pools whose key names it, and what each site has of its own.
    assert {name for name in first - plan.common if "q_proj" in name} == {
        "halves.layers.0.self_attn.q_proj.B",
        "stretched.layers.0.self_attn.q_proj.K_A",
        "stretched.layers.0.self_attn.q_proj.K_B",
        "frozen.layers.0.self_attn.q_proj.gain_rank",
        "frozen.layers.0.self_attn.q_proj.gain_out",
        "fixed.layers.0.self_attn.q_proj.K_B",
    }
    assert not any(name.startswith("own.") for name in plan.common)


def test_without_the_key_all_pools_are_common():
    plan = plan_spec("lora", "smollm2-135m")
    assert plan.common == plan.tensor.keys()


@pytest.mark.parametrize(
    "clauses", ["where adapter == legal  rank 2", "rank match adapter { legal: 2 }"]
)
def test_an_adapter_cannot_be_named(clauses):
    with pytest.raises(PlanError, match=r"BS30[126]|BS310"):
        plan_spec(f"spec s\ntarget q_proj\nshare a  per module  {clauses}\n", "smollm2-135m")
