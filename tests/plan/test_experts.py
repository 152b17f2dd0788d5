"""Experts as sites: their attribute, keys and conditions of it, and what they own."""

import pytest

from bishare_dsl import plan_spec
from bishare_dsl.diagnostics import PlanError
from bishare_dsl.models import Architecture, Site

WIDTHS = {"gate_proj": (16, 24), "up_proj": (16, 24), "down_proj": (24, 16)}


@pytest.fixture
def mixture():
    """Two blocks, of attention and eight experts."""
    sites = []
    for layer in range(2):
        block = f"model.layers.{layer}"
        sites.append(Site.at(f"{block}.self_attn.q_proj", 16, 16))
        for expert in range(8):
            for name, widths in WIDTHS.items():
                sites.append(Site.at(f"{block}.mlp.experts.{expert}.{name}", *widths))
    found = tuple(sites)
    return Architecture(name="tiny", family="mixture", layers=2, parameters=1000, sites=found)


def planned(mixture, statements):
    return plan_spec(f"spec s\n{statements}", mixture)


def test_a_pool_for_so_many_experts(mixture):
    text = "target parent experts share x per expert // 4, kind rank 2"
    plan = planned(mixture, text)
    assert {pool.key for pool in plan.pools} == {(i, kind) for i in (0, 1) for kind in WIDTHS}
    assert all(len(pool.members) == 8 for pool in plan.pools)
    assert plan.trainable == 2 * 3 * 2 * (16 + 24)
    assert plan.tensors[0].name == "x.expert_div_4_0.gate_proj.A"


def test_an_outer_factor_that_experts_share(mixture):
    text = "target parent experts share x A per layer, kind B per layer, kind, expert rank 2"
    plan = planned(mixture, text)
    a = sum(2 * d_in for d_in, _ in WIDTHS.values())
    b = sum(2 * d_out for _, d_out in WIDTHS.values())
    assert plan.trainable == 2 * (a + 8 * b)


@pytest.mark.parametrize(
    ("condition", "experts"),
    [
        ("expert in 0..2", {0, 1, 2}),
        ("expert == 7", {7}),
        ("expert != none and expert % 4 == 1", {1, 5}),
        ("expert == none", {None}),
        ("not expert in 1..7", {0, None}),
    ],
)
def test_conditions(mixture, condition, experts):
    text = f'target kind "*" share x per module rank 1 where {condition} share y where expert == 6'
    with pytest.warns(match="BS308"):
        plan = planned(mixture, f"{text} per module rank 1")
    of = {site.path: site.expert for site in plan.sites}
    assert {of[term.site] for term in plan.terms if term.share == "x"} == experts


def test_a_key_that_others_do_not_have(mixture):
    with pytest.raises(PlanError) as caught:
        planned(mixture, 'target kind "*" share x per expert // 4, kind rank 2')
    (problem,) = caught.value.problems
    assert problem.code == "BS210"
    assert problem.loc == ("shares", 0, "per", 0, "left")
    assert problem.help is not None
    assert "model.layers.0.self_attn.q_proj" in problem.help
    assert "expert != none" in problem.help
    planned(
        mixture,
        "target q_proj, parent experts share local per module rank 1 "
        "share x per expert // 4, kind rank 2 where expert != none",
    )


def test_only_experts_have_one():
    for path, expert in {
        "model.layers.3.mlp.experts.12.up_proj": 12,
        "model.layers.3.block_sparse_moe.experts.0.w1": 0,
        "model.layers.3.mlp.shared_expert.up_proj": None,
        "model.layers.3.mlp.up_proj": None,
        "model.layers.3.self_attn.heads.2.q_proj": None,
    }.items():
        site = Site.at(path, 4, 4)
        assert site is not None
        assert site.expert == expert
        assert site.layer == 3
