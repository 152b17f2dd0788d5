"""Keys of their own for what a transform gives each module, and for the diagonals of a gain."""

from bishare_dsl import parse_spec, plan_spec
from bishare_dsl.testing.models import tiny_model
from tests.support.checks import check_spec

TEXT = """spec roles
target q_proj, v_proj, up_proj
share s  per model  K_A per in, layer % 2  gain_out per kind  rank 4  via KE(size = 4)  gain out init 1  freeze K_A
"""


def test_pools_and_counts():
    """Of q, v and up over four layers: two kernels for their one input, a diagonal for each kind."""
    plan = plan_spec(TEXT, "llama-7b")
    pools = {pool.tensor: (pool.key, len(pool.members)) for pool in plan.pools}
    assert {name: found for name, found in pools.items() if name.endswith("K_A")} == {
        "s.in_4096.layer_mod_2_0.K_A": ((4096, 0), 48),
        "s.in_4096.layer_mod_2_1.K_A": ((4096, 1), 48),
    }
    assert {name: found for name, found in pools.items() if name.endswith("gain_out")} == {
        f"s.{kind}.gain_out": ((kind,), 32) for kind in ("q_proj", "v_proj", "up_proj")
    }
    diagonals = 4096 + 4096 + 11008
    own_kernels = 32 * (1024 + 1024 + 2752)
    assert plan.trainable == 2 * 4 * 4 + diagonals + own_kernels
    assert plan.frozen == 2 * 1024


def test_invariants():
    check_spec(parse_spec(TEXT), tiny_model("llama", num_hidden_layers=3))


def test_a_start_by_its_role():
    text = "spec x\ntarget q_proj\nshare s per model rank 4 via KE init K_A ones, B zeros"
    starts = {t.name.rsplit(".", 1)[-1]: t.init for t in plan_spec(text, "llama-7b").tensors}
    assert starts == {"A": "kaiming_uniform", "B": "zeros", "K_A": "ones", "K_B": "kaiming_normal"}
