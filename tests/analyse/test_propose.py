"""A proposal finds the sharing that was planted, within its budget, and says what chance gives."""

import re

import pytest
import torch

from bishare_dsl.analyse.keys import Grouping, share_of
from bishare_dsl.analyse.propose.candidates import candidates
from bishare_dsl.analyse.propose.choose import units_of
from bishare_dsl.analyse.propose.evidence import Evidence, of_adapters, of_gradients
from bishare_dsl.analyse.propose.gradients import gradients
from bishare_dsl.analyse.propose.intervals import partitions
from bishare_dsl.analyse.propose.proposal import propose
from bishare_dsl.analyse.propose.residual import Residual
from bishare_dsl.compiler import make_plan
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.language import format_text, parse_spec
from bishare_dsl.models import architecture_of
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.transforms import Width, transform_kind
from tests.analyse.conftest import INDEPENDENT, TARGET, architecture


def planted(share: str) -> str:
    return f"spec planted {TARGET} share one {share}"


def evidence(read, share: str, **settings) -> Evidence:
    return of_adapters([read(planted(share), **settings)])


def size(share: str) -> int:
    return make_plan(f"{planted(share)}\n", architecture()).plan.trainable


def partition(plan, role):
    return {frozenset(pool.members) for pool in plan.pools if pool.role == role}


@pytest.mark.parametrize(
    ("share", "role"),
    [
        ("A per layer, in B per module rank 4", "A"),
        ("A per module B per kind rank 4", "B"),
        ("A per module B per layer // 2, out rank 4", "B"),
        ("A per in, layer in 0..2 B per module rank 4", "A"),
        ("A per in B per module rank 4", "A"),
        ("per kind, layer // 2 rank 4", "A"),
        ("per module rank 4", "A"),
        ("A per layer, in B per kind rank 4", "AB"),
        ("A per kind B per layer, out rank 4", "AB"),
        ("A per kind B per kind, layer // 2 rank 4", "AB"),
        ("per layer via KE(size = 32) rank 3", "A"),
        ("per kind via KE(size = 32, shared_rank = 1) rank 3", "A"),
    ],
)
def test_the_planted_key_is_found_at_its_rank(read, share, role):
    found = propose(evidence(read, share), size(share))
    planned = make_plan(f"{planted(share)}\n", architecture()).plan
    for one in role:
        assert partition(found.made.plan, one) == partition(planned, one)
    assert found.kept == pytest.approx(1, abs=1e-3)
    assert found.made.plan.trainable <= size(share)
    if "per module rank" not in share or "A per" in share:
        assert found.chance < 0.9


def test_slices_are_proposed_where_widths_differ(read):
    share = "per layer via SS rank 4"
    found = propose(evidence(read, share), size(share), shares=1)
    assert "per layer  " in found.text
    assert "via SS" in found.text
    assert found.kept > 2 * found.chance


def test_of_independent_updates_it_keeps_what_chance_does(read):
    found = propose(of_adapters([read(INDEPENDENT)]), size("per module rank 1"))
    assert found.kept == pytest.approx(found.chance, abs=0.03)
    # What two more shares would keep beyond it is less than a share is worth.
    assert [part.share for part in found.parts] == ["own"]
    for part in found.parts:
        assert part.kept == pytest.approx(part.chance, abs=0.03)


def test_two_tiers_are_found_together(read):
    tiers = "A per layer, in B per module rank 2 share two A per module B per kind rank 1 scale 0.3"
    found = propose(evidence(read, tiers), size(tiers))
    # In this model these two differ in the A of up_proj.
    (second,) = {part.share for part in found.parts} - {"a_layer", "a_parent_layer"}
    assert second in ("b_kind", "a_parent_layer_b_kind")
    assert found.kept > 0.97 > found.chance + 0.2


def test_ranks_follow_the_kinds_that_need_them(read):
    share = "per module rank match kind { v_proj: 6; else: 1 }"
    found = propose(evidence(read, share), size(share), shares=1)
    (share,) = parse_spec(found.text).shares
    plan = found.made.plan
    ranks = {term.site.rsplit(".", 1)[1]: term.rank for term in plan.terms}
    assert ranks["v_proj"] > ranks["q_proj"]


@pytest.fixture
def weighed(read):
    """Return independent updates, and the units of all that is weighed for them, by their shares' texts."""
    found = of_adapters([read(INDEPENDENT)])
    offered = units_of(candidates([], found.sites), Grouping(found.architecture, found.sites))
    return found, {candidate.text: parts for candidate, parts in offered}


@pytest.mark.parametrize("text", ["A per layer, in  B per kind", "per layer  via KE(size = 32)"])
@pytest.mark.parametrize("count", [1, 3])
def test_what_is_foretold_is_kept(weighed, text, count):
    found, offered = weighed
    (unit,) = offered[text]
    foretold = Residual(found.sets).gains(unit, count)
    assert Residual(found.sets).spend(unit, count) == pytest.approx(foretold[-1], rel=1e-3)
    assert foretold[-1] > foretold[0]


def test_what_is_foretold_of_kernels_is_kept(weighed):
    found, offered = weighed
    (unit,) = offered["per model  via KE(size = 32, shared_rank = 1)"]
    foretold = Residual(found.sets).gains(unit, 12)
    for count in (1, 2, 12):  # Of k_proj there are 3, and 12 of none.
        assert Residual(found.sets).spend(unit, count) == pytest.approx(foretold[count], rel=1e-3)


def test_a_cost_is_what_the_compiler_says(weighed):
    found, offered = weighed
    grouping = Grouping(found.architecture, found.sites)
    for text, parts in offered.items():
        for rank in (1, 3):
            plan = grouping.plan(share_of(f"share x {text} rank {rank}"))
            assert sum(unit.price(rank) for unit in parts) == plan.trainable, text


@pytest.mark.parametrize(
    ("widths", "sizes"),
    [
        ([(4096, 4096), (4096, 11008)], {256, 64}),
        ([(576, 192), (1536, 576)], {192, 64}),
        ([(768, 2304), (768, 50257)], set()),
    ],
)
def test_sizes_of_kernels_divide_every_width(widths, sizes):
    offers = transform_kind("KE").offers([Width(*width) for width in widths])
    assert {offer.size for offer in offers} == sizes


def test_gates_keep_what_each_module_keeps_by_itself(weighed):
    found, offered = weighed
    (gates,) = offered["per model  via GT(size = 64, gate_rank = rank)"]
    plain = offered["per module"]
    kept = Residual(found.sets).gains(gates, 2)[-1]
    assert kept == pytest.approx(sum(Residual(found.sets).gains(u, 2)[-1] for u in plain))
    assert gates.price(2) > sum(unit.price(2) for unit in plain)


def test_several_adapters_are_kept_alike(read):
    shared = "A per layer, in B per module rank 4"
    adapters = [read(planted(shared), name=name, seed=i) for i, name in enumerate("ab")]
    found = propose(of_adapters(adapters), size(shared))
    assert found.parts[0].share == "a_layer"
    assert found.kept == pytest.approx(1, abs=1e-3)
    assert "a (starts left in), b (starts left in)" in " ".join(found.text.replace("#", "").split())


def test_the_text_is_formatted_and_says_why(read):
    share = "A per layer, in B per module rank 4"
    one = propose(evidence(read, share), size(share))
    assert format_text(one.text) == one.text
    comment = " ".join(re.sub(r"\n# ?", " ", one.text.partition("spec ")[0]).split())
    assert "The shares keep 100.0% of its energy" in comment
    assert "A plain LoRA within the budget has rank" in comment
    assert "ways to share were weighed" in comment
    left = re.findall(r"\(rank [^)]*\)", comment)
    assert len(left) > 5
    assert all(", by chance " in one for one in left)
    assert all(f"via {name}" in comment for name in ("SS", "GT", "KE"))
    assert "Alone it keeps 100.0%; of independent updates" in one.text
    again = propose(evidence(read, share, name="again"), size(share))
    assert again.text.replace("again", "adapter") == one.text


def test_no_budget_is_exceeded(read):
    found_for = evidence(read, "A per layer, in B per module rank 4")
    for budget in (3_000, 20_000, 50_000):
        found = propose(found_for, budget)
        assert 0.6 * budget < found.made.plan.trainable <= budget
    with pytest.raises(AdapterError, match="no share fits into 10 parameters") as caught:
        propose(found_for, 10)
    assert caught.value.problems[0].code == "BS851"


def test_partitions_are_the_best_of_all():
    values = torch.rand(9, 10, generator=torch.Generator().manual_seed(0)).tolist()

    def kept(a, b):
        return values[a][b]

    def every(first, left):
        if left == 1:
            yield (first,)
            return
        for second in range(first + 1, 9 - left + 2):
            for rest in every(second, left - 1):
                yield (first, *rest)

    def total(starts):
        return sum(kept(a, b) for a, b in zip(starts, [*starts[1:], 9], strict=True))

    for count, starts in zip((1, 2, 4), partitions(kept, 9, (1, 2, 4)), strict=True):
        assert len(starts) == count
        assert total(starts) == pytest.approx(max(map(total, every(0, count))))


def test_a_sketch_is_the_gradient():
    """The gradients of a tiny model are of low rank, since its tokens are few; so sketches have all of them."""
    model = tiny_model("llama")
    batch = {
        "input_ids": torch.tensor([[3, 4, 5, 6, 7], [8, 9, 3, 4, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]),
        "labels": torch.tensor([[3, 4, 5, 6, 7], [8, 9, 3, 4, -100]]),
    }
    sites = architecture_of(model).sites
    found = gradients(model, sites, [batch, batch], seed=0)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    model(**batch).loss.backward()
    for site, gradient in found.items():
        dense = gradient.left.t() @ torch.diag(gradient.values) @ gradient.right
        exact = 2 * model.get_submodule(site.path).weight.grad
        assert float((dense - exact).norm() / exact.norm()) < 1e-2, site.path
    alike = of_gradients(architecture_of(model), found, "gradients").sets[0]
    assert len({round(update.energy, 4) for update in alike.values()}) == 1
