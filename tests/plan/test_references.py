"""References between pools: who takes which tensor, and how many numbers that leaves, counted by hand."""

import pytest

from bishare_dsl.api import plan_spec
from bishare_dsl.language import format_text, parse_spec, spec_text

LAYERS, WIDTH, INNER = 32, 4096, 11008  # of llama-7b

COUNTS = {
    # `up` has A and B for each layer, `down` has A alone.
    """target gate_proj, up_proj, down_proj
       share up    per layer               rank 8  where gate_proj, up_proj
       share down  A per layer  B is up.A  rank 8  where down_proj  init A zeros
    """: LAYERS * 8 * (WIDTH + INNER) + LAYERS * 8 * INNER,
    # The last layer has nothing to write for.
    """target q_proj, o_proj
       share read   per layer                               rank 4  where q_proj
       share write  A per module  B per layer + 1 is read.A  rank 4
           where o_proj and layer < layers - 1
           init A zeros
    """: LAYERS * 4 * (WIDTH + WIDTH) + (LAYERS - 1) * 4 * WIDTH,
    # One tensor for each layer, and a core of 8 x 8 for each of its two modules.
    """target q_proj, o_proj
       share same  A per layer  B is A  core per module  rank 8  via Core
    """: LAYERS * 8 * WIDTH + 2 * LAYERS * 8 * 8,
    # `down` is the transposed update of `up` and has no numbers.
    """target up_proj, down_proj
       share up    per layer             rank 4  where up_proj
       share down  A is up.B  B is up.A  rank 4  where down_proj
    """: LAYERS * 4 * (WIDTH + INNER),
    # Both shares have factors of 4 x 128 for each layer; of four kernels of 1 x 32 at each site, one is not there twice.
    """target q_proj, o_proj
       share s  per layer                rank 4  via KE(size = 128)
       share t  per layer  K_A is s.K_A  rank 4  via KE(size = 128)
    """: 2 * 2 * LAYERS * 4 * 128 + 3 * 2 * LAYERS * (WIDTH // 128),
    # A key that groups layers in another way takes few of the owner's tensors, and adds none.
    """target q_proj, o_proj
       share s  per layer                                        rank 2  where q_proj
       share t  A per module  B per layer - layer % 4 is s.A  rank 2  where o_proj  init A zeros
    """: LAYERS * 2 * (WIDTH + WIDTH) + LAYERS * 2 * WIDTH,
}


@pytest.mark.parametrize("text", COUNTS)
def test_it_counts_once(text):
    plan = plan_spec(f"spec s {text}", "llama-7b")
    assert plan.trainable == COUNTS[text] == sum(plan.shares.values())
    pooled = [pool.tensor for pool in plan.pools]
    assert len(pooled) == len(set(pooled))


def tensors_of(text, share, role):
    """Return the tensor of a role at each layer."""
    plan = plan_spec(f"spec s {text}", "llama-7b")
    layers = {site.path: site.layer for site in plan.sites}
    return {layers[term.site]: term.tensors[role] for term in plan.terms if term.share == share}


def test_a_key_is_looked_up_at_each_module():
    _, following, same, _, _, grouped = COUNTS
    assert tensors_of(following, "write", "B") == {
        layer: f"read.layer_{layer + 1}.A" for layer in range(LAYERS - 1)
    }
    assert tensors_of(same, "same", "B") == {
        layer: f"same.layer_{layer}.A" for layer in range(LAYERS)
    }
    assert tensors_of(grouped, "t", "B") == {
        layer: f"s.layer_{layer // 4 * 4}.A" for layer in range(LAYERS)
    }


@pytest.mark.parametrize("text", COUNTS)
def test_its_text_says_the_same(text):
    spec = parse_spec(f"spec s {text}")
    assert parse_spec(spec_text(spec)) == spec
    assert format_text(format_text(f"spec s {text}")) == format_text(f"spec s {text}")


def test_an_owner_may_come_later():
    text = """target gate_proj, up_proj, down_proj
       share down  A per layer  B is up.A  rank 8  where down_proj  init A zeros
       share up    per layer               rank 8  where gate_proj, up_proj
    """
    plan = plan_spec(f"spec s {text}", "llama-7b")
    assert plan.trainable == next(iter(COUNTS.values()))
    assert plan.references == {("down", "B"): ("up", "A")}


def test_the_module_that_holds_it_contains_every_user():
    """A tensor of one layer that the layer before uses belongs to both, so to the model."""
    following = [*COUNTS][1]
    plan = plan_spec(f"spec s {following}", "llama-7b")
    owners = {tensor.name: tensor.owner for tensor in plan.tensors}
    assert owners["read.layer_0.A"] == "model.layers.0.self_attn"
    assert owners["read.layer_1.A"] in ("", "model", "model.layers")


def test_a_text_keeps_the_order_of_keys_which_is_that_of_the_tensors():
    """Keys other than of A and B were written by name, and the text then gave another plan than the spec."""
    spec = parse_spec(
        "spec s target q_proj share s per in by_layer per layer by_kind per kind rank 3 "
        "via Core as by_layer then Core as by_kind init by_kind normal"
    )
    plan = plan_spec(spec, "llama-7b")
    assert plan_spec(spec_text(spec), "llama-7b").digest == plan.digest
