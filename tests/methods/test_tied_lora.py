"""Tied-LoRA: the paper's equation, and the counts of its formulas whatever is frozen."""

import itertools

import pytest
import torch

from bishare_dsl.language import parse_spec
from bishare_dsl.models import preset
from bishare_dsl.models.inspect import inspect_model
from bishare_dsl.plan import build_plan
from tests.methods.conftest import near
from tests.support.checks import check_against_reference, check_fresh
from tests.support.families import tiny_model

R, LAYERS, D = 4, 2, 32
ROLES = ("A", "B", "gain_rank", "gain_out")
# B or v starts at zero, so one of them must learn.
VARIANTS = [
    frozen
    for count in range(4)
    for frozen in itertools.combinations(ROLES, count)
    if not {"B", "gain_out"} <= set(frozen)
]


def variant(frozen, target):
    """The shipped spec with another target and other frozen tensors."""
    freeze = f"freeze {', '.join(frozen)}" if frozen else ""
    starts = "init B kaiming_uniform gain rank init 1, out init 0"
    if "gain_out" in frozen:  # Then B is what starts at zero.
        starts = "gain rank init 1, out init 1"
    return parse_spec(
        f'spec variant use "tied_lora.share" target {target} '
        f"replace share tied A per model B per kind rank r {starts} {freeze}"
    ).with_params({"r": R})


@pytest.mark.parametrize("frozen", VARIANTS)
def test_counts_of_the_paper_s_formulas(frozen):
    """Over a fused QKV of width 3 d: A has d r, B 3 d r; a layer's u has r, its v 3 d."""
    plan, _ = build_plan(variant(frozen, "c_attn"), inspect_model(tiny_model("gpt2")))
    parts = {"A": D * R, "B": 3 * D * R, "gain_rank": LAYERS * R, "gain_out": LAYERS * 3 * D}
    assert plan.trainable == sum(size for role, size in parts.items() if role not in frozen)
    assert plan.frozen == sum(size for role, size in parts.items() if role in frozen)


def test_all_trained_is_4dr_and_a_layer_s_r_and_3d():
    plan, _ = build_plan(variant((), "c_attn"), inspect_model(tiny_model("gpt2")))
    assert plan.trainable == 4 * D * R + LAYERS * (R + 3 * D)


def test_apart_q_k_and_v_have_a_u_each():
    """The fused B in three, and all else the same but for u, of which each module has its own."""
    plan, _ = build_plan(variant((), "q_proj, k_proj, v_proj"), preset("llama-7b"))
    d, layers = 4096, 32
    assert plan.trainable == 4 * d * R + layers * (3 * R + 3 * d)


@pytest.mark.parametrize("frozen", VARIANTS)
def test_variants_start_at_the_base_and_are_the_dense_reference(frozen):
    spec, model = variant(frozen, "q_proj, k_proj, v_proj"), tiny_model("llama")
    check_fresh(spec, model)
    check_against_reference(spec, model)


def test_the_paper_s_equation(adapted):
    ours = adapted("tied_lora", r=R)
    for site in ours.plan.sites:
        tensors = ours.tensors(site.path)
        u, v = torch.diag(tensors["gain_rank"][0]), torch.diag(tensors["gain_out"][0])
        near(ours.delta(site.path), v @ tensors["B"].T @ u @ tensors["A"])


def test_one_a_for_all_and_a_b_for_each_kind(adapted):
    ours = adapted("tied_lora", r=R)
    kinds = {site.path: site.kind for site in ours.plan.sites}
    pools = {pool.tensor: {kinds[path] for path in pool.members} for pool in ours.plan.pools}
    assert pools == {
        "tied.A": {"q_proj", "k_proj", "v_proj"},
        "tied.q_proj.B": {"q_proj"},
        "tied.k_proj.B": {"k_proj"},
        "tied.v_proj.B": {"v_proj"},
    }
