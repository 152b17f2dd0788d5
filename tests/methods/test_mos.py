"""MoS: the paper's equation, a count that knows no rank, and indices that come from the seed and never train."""

import copy
from itertools import pairwise

import pytest
import torch

from bishare_dsl import compile_spec, load_adapter, plan_spec
from bishare_dsl.diagnostics import BishareError
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.transforms import Width
from bishare_dsl.transforms.shards import Shards
from tests.methods.conftest import LAYERS, SIZES, near, planned, run, sites, spec

R, PRIVATE, SHARDS = 4, 1, 2
PARAMS = {"r": R, "budget": 3, "private": PRIVATE, "shards": SHARDS, "lora_alpha": 2 * R}
POOL = 2 * LAYERS * SHARDS


def chosen(tensors, role):
    """The indices of a site, ``(rows, shards)``."""
    return (tensors[f"I_{role}"].long() @ torch.tensor([256, 1])).unflatten(0, (-1, SHARDS))


def test_the_paper_s_equation(adapted):
    """A row is pieces of the pool one behind the other; the private rows stand below those."""
    ours = adapted("mos", **PARAMS)
    for site in ours.plan.sites:
        tensors, own = ours.tensors(site.path, "public"), ours.tensors(site.path, "own")
        whole = {}
        for role in "AB":
            pieces = [piece for row in tensors[role] for piece in row.chunk(SHARDS)]
            rows = [torch.cat([pieces[i] for i in row]) for row in chosen(tensors, role)]
            whole[role] = torch.cat([torch.stack(rows), own[role]])
            assert len(whole[role]) == R
        near(ours.delta(site.path), 2 * whole["B"].T @ whole["A"])


def test_each_site_draws_other_pieces_each_at_most_once(llama):
    model = compile_spec(spec("mos", **PARAMS), copy.deepcopy(llama))
    tensors, seen = model.bishare.tensors(), []
    for term in model.bishare.plan.terms:
        if term.share == "public":
            of_term = {role: tensors[name] for role, name in term.tensors.items()}
            for role in "AB":
                indices = chosen(of_term, role).flatten().tolist()
                assert len(indices) == len({*indices}) == (R - PRIVATE) * SHARDS
                assert all(0 <= i < POOL for i in indices)
                seen.append(indices)
    assert all(one != other for one, other in pairwise(seen))
    assert {i for indices in seen for i in indices} == {*range(POOL)}


@pytest.mark.parametrize("model", SIZES)
@pytest.mark.parametrize(("r", "budget"), [(4, 2), (16, 2), (16, 8)])
def test_count(model, r, budget):
    """That of a LoRA of rank ``budget``, whatever the rank is."""
    plan = planned("mos", model, r=r, budget=budget)
    assert plan.trainable == budget * sum(i + o for i, o in sites(model))
    assert {plan.rows(site.path) for site in plan.sites} == {r}


def test_indices_are_not_stored_and_come_back(adapted, tmp_path):
    ours = compile_spec(spec("mos", **PARAMS), tiny_model("llama"), seed=3)
    expected = ours.bishare.tensors()
    ours.bishare.save_pretrained(tmp_path)
    found = load_adapter(tmp_path, tiny_model("llama")).bishare
    stored = tmp_path / "adapter_model.safetensors"
    assert stored.stat().st_size < 4 * found.plan.trainable + 16_384
    other = compile_spec(spec("mos", **PARAMS), tiny_model("llama"), seed=4).bishare.tensors()
    indices = [name for name in expected if ".I_" in name]
    assert len(indices) == 2 * len(found.plan.sites)
    for name in indices:
        assert not expected[name].requires_grad
        assert torch.equal(found.tensors()[name], expected[name])
        assert not torch.equal(other[name], expected[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_type_has_the_same_pieces(dtype):
    """An index is two digits to the base 256, so that 16 bits lose nothing of it."""
    shards, rank = Shards(rows=300, shards=2), 12_000
    pool = torch.arange(2 * rank).view(rank, 2)  # Each piece is its own index.
    index = torch.randperm(2 * rank)[:600]
    digits = torch.stack((index // 256, index % 256), 1).to(dtype)
    found = shards.factor("A", {"A": pool, "I_A": digits}, rank, 2)
    assert torch.equal(found.flatten(), index)


def test_the_pool_gets_what_all_its_users_give(adapted):
    """The gradient of a piece is the sum of those of the places where it stands."""
    ours = adapted("mos", **PARAMS)
    run(ours.model)
    [name] = {
        t.tensors["A"] for t in ours.plan.terms if t.site.endswith("q_proj") and t.share == "public"
    }
    pool = ours.model.bishare.tensors()[name]
    loras = compile_spec(spec("lora", r=R, lora_alpha=2 * R), copy.deepcopy(ours.base)).double()
    expected = torch.zeros(POOL, pool.shape[1] // SHARDS, dtype=torch.float64)
    for term in loras.bishare.plan.terms:
        own, public = ours.tensors(term.site, "own"), ours.tensors(term.site, "public")
        width = Width(public["A"].shape[1], public["B"].shape[1])
        factors = Shards(rows=R - PRIVATE, shards=SHARDS).factors(public, 2 * LAYERS, width)
        with torch.no_grad():
            for role, factor in zip("AB", factors, strict=True):
                loras.bishare.tensors()[term.tensors[role]].copy_(torch.cat([factor, own[role]]))
    run(loras)
    for term in loras.bishare.plan.terms:
        if term.site.endswith("q_proj"):
            gradient = loras.bishare.tensors()[term.tensors["A"]].grad[: R - PRIVATE]
            index = chosen(ours.tensors(term.site, "public"), "A").flatten()
            expected.index_add_(0, index, gradient.reshape(len(index), -1))
    torch.testing.assert_close(pool.grad.reshape(POOL, -1), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("share", "code", "says"),
    [
        ("rank 4 via Shards(rows = 5)", "BS206", "too few for the 5 of a site"),
        ("rank 20000 via Shards(rows = 5)", "BS206", "more than 65,536 shards"),
        ("rank 8 via Shards(shards = 3)", "BS305", "does not divide into 3 shards"),
        ("rank 8 via Shards init I_A ones", "BS215", "I_A"),
        ("rank 8 via Shards freeze I_A", "BS215", "I_A"),
    ],
)
def test_what_cannot_be(share, code, says):
    with pytest.raises(BishareError, match=says) as raised:
        plan_spec("spec x\ntarget q_proj\nshare s  per model  " + share, "llama-7b")
    assert code in {problem.code for problem in raised.value.problems}


def test_a_default_start_leaves_indices_alone():
    text = "spec x\ntarget q_proj\ninit I_A ones\nshare s  per model  rank 8  via Shards(rows = 2)"
    plan = plan_spec(text, "llama-7b")
    assert {t.init for t in plan.tensors if t.name.endswith("I_A")} == {"choice"}
