"""Topologies of our own: who shares what, and what it costs."""

from collections import Counter

import pytest
import torch

from bishare_dsl.models.inspect import inspect_model
from bishare_dsl.plan import build_plan
from bishare_dsl.rewrite.adapt import compile_plan
from bishare_dsl.rewrite.island import island
from bishare_dsl.rewrite.passes import FuseIslands, ShareFactors
from bishare_dsl.testing.models import tiny_model
from tests.methods.conftest import SIZES, planned, sites, spec


@pytest.mark.parametrize("model", SIZES)
def test_shared_input_has_one_a_for_each_input(model):
    layers, d, _, ffn = SIZES[model]
    plan = planned("shared_input", model, r=8)
    assert plan.trainable == 8 * (layers * (d + d + ffn) + sum(o for _, o in sites(model)))
    members = Counter(len(pool.members) for pool in plan.pools if pool.role == "A")
    assert members == {3: layers, 1: 2 * layers}  # q, k and v; up; down


def test_modules_that_share_a_do_read_one_input(adapted):
    """And only they: what a pool of A promises is so in the running model."""
    ours = adapted("shared_input", r=2)
    seen = {}
    for site in ours.plan.sites:
        module = ours.base.get_submodule(site.path)
        module.register_forward_hook(
            lambda _, inputs, __, path=site.path: seen.update({path: inputs[0]})
        )
    ours.base(torch.arange(6)[None])
    for pool in ours.plan.pools:
        if pool.role == "A":
            first, *others = (seen[path] for path in pool.members)
            assert all(torch.equal(first, other) for other in others)


def test_shared_input_projects_each_input_down_once():
    """Where LoRA projects down to three times the rank, and takes a third of it for each of q, k and v."""

    def products(name):
        model = tiny_model("llama", num_hidden_layers=1)
        plan, _ = build_plan(spec(name, r=2), inspect_model(model))
        graphs = {}
        compile_plan(
            model,
            plan,
            observe=lambda path, _, region: graphs.update({path: region.forward}),
            optimisations=(ShareFactors(), FuseIslands()),
        )
        nodes = graphs["model.layers.0.self_attn"].nodes
        (uses,) = (node.args[4] for node in nodes if node.target is island)
        return tuple(tuple(use[1:3] for use in layer) for layer in uses)  # First row, and rows.

    assert products("lora") == (((0, 2),), ((2, 2),), ((4, 2),))
    assert products("shared_input") == (((0, 2),),) * 3


@pytest.mark.parametrize("model", SIZES)
def test_late_layers_own_and_early_ones_share(model):
    layers = SIZES[model][0]
    plan = planned("late_own", model, first=-8, r_own=8, r_early=16)
    layer = sum(i + o for i, o in sites(model)[:5])
    assert plan.shares == {"own": 8 * 8 * layer, "early": 16 * layer}
    for pool in plan.pools:
        assert len(pool.members) == (1 if pool.share == "own" else layers - 8)


@pytest.mark.parametrize("model", SIZES)
def test_all_ups_share_one_pool(model):
    plan = planned("up_pool", model, r=8)
    layers, d, _, ffn = SIZES[model]
    assert {len(pool.members) for pool in plan.pools if pool.role in ("A", "B")} == {layers}
    assert plan.trainable == 8 * (d + ffn + layers)


def test_a_ladder_doubles_its_rank_where_its_pools_widen():
    plan = planned("ladder", r=2, group=4, size=256)
    ranks = {term.share: term.rank for term in plan.terms}
    assert ranks == {"module": 2, "group": 4, "depth": 8, "whole": 16}
    members = {pool.share: len(pool.members) for pool in plan.pools}
    assert members == {"module": 1, "group": 4, "depth": 32, "whole": 160}
    layer = sum(i + o for i, o in sites("llama-7b")[:5])
    kernels = sum(i // 256 + o // 256 for i, o in sites("llama-7b"))
    assert plan.shares == {
        "module": 2 * 32 * layer,
        "group": 4 * 8 * layer,
        "depth": 8 * layer,
        "whole": 16 * 2 * 256 + kernels,
    }
