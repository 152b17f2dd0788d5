"""Which sites share: every `where` and `per` of the language, on a model of four layers."""

import pytest

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


def groups(plan, share=None):
    """The pools as sets of ``layer.kind``, by the key that made them."""
    found = {}
    for pool in plan.pools:
        if pool.role == "A" and share in (None, pool.share):
            found[pool.key] = {f"{p.split('.')[2]}.{p.split('.')[-1]}" for p in pool.members}
    return found


def sites(layers, kinds):
    return {f"{layer}.{kind}" for layer in layers for kind in kinds}


def test_per_model_shares_everything(plan):
    assert groups(plan("share s per model rank 2 via SS")) == {(): sites(range(4), ATTENTION + MLP)}


def test_per_kind_needs_no_transform(plan):
    """All q_proj are alike, so that one factor fits them as it is."""
    made = plan("share s per kind rank 2")
    assert groups(made) == {(kind,): sites(range(4), [kind]) for kind in ATTENTION + MLP}
    assert made.tensor["s.q_proj.A"].shape == (2, 12)
    assert made.tensor["s.q_proj.B"].shape == (2, 20)


def test_layers_is_the_number_of_blocks(plan):
    assert groups(
        plan("target q_proj\nshare s where layer >= 3 * layers // 4 per module rank 2")
    ) == {("model.layers.3.self_attn.q_proj",): sites([3], ["q_proj"])}
    mirrored = plan("target q_proj\nshare s per abs(2 * layer - layers + 1) rank min(layers, 9)")
    assert groups(mirrored) == {(3,): sites([0, 3], ["q_proj"]), (1,): sites([1, 2], ["q_proj"])}
    assert {term.rank for term in mirrored.terms} == {4}
    assert "s.abs_2_times_layer_minus_layers_plus_1_3.A" in mirrored.tensor


def test_a_predicate_is_a_key(plan):
    assert groups(plan("target q_proj\nshare s per layer in 0..2 rank 2")) == {
        (True,): sites([0, 1, 2], ["q_proj"]),
        (False,): sites([3], ["q_proj"]),
    }


def test_lets_cost_no_more_than_their_number(plan):
    """Each let names the one above twice: evaluating each mention anew would take 2**200 steps."""
    lets = "let l0 = q_proj and k_proj\n" + "".join(
        f"let l{i} = l{i - 1}, l{i - 1}\n" for i in range(1, 200)
    )
    made = plan(f"{lets}share s where not l199 per model rank 1 via SS")
    assert len(made.pools[0].members) == 28


def test_ranks_by_kind(plan):
    made = plan(
        "share s per module rank match kind { q_proj, k_proj: 4; v_proj: 8; down_proj: 0; else: 2 }"
    )
    found = {(term.site.split(".")[-1], term.rank) for term in made.terms}
    of_four = {("q_proj", 4), ("k_proj", 4)}
    assert found == of_four | {("v_proj", 8), ("o_proj", 2), ("gate_proj", 2), ("up_proj", 2)}


@pytest.mark.parametrize(
    ("shares", "ranks"),
    [
        ("per layer rank match layer { 0: 1; 0..3: 2 }", [1, 2, 2, 2]),  # The first arm that fits.
        ("per layer rank match layer { 0..1: 0; else: 2 }", [0, 0, 2, 2]),  # 0 drops a site.
        ("per module rank in // 4 + layer", [3, 4, 5, 6]),
    ],
)
def test_a_rank_may_read_the_site(plan, shares, ranks):
    made = plan(f"target q_proj\nshare s {shares}")
    found = {int(term.site.split(".")[2]): term.rank for term in made.terms}
    assert [found.get(layer, 0) for layer in range(4)] == ranks
    assert len(made.tensor) == 2 * len(found)


def test_terms_of_one_site_add_up_and_shares_may_be_of_different_places(plan):
    made = plan(
        "share a per module rank 2\nshare b per layer rank 3 via SS\nshare c per model rank 4 via KE(size = 4)"
    )
    path = "model.layers.1.mlp.up_proj"
    assert [term.share for term in made.terms_of[path]] == ["a", "b", "c"]
    assert made.rows(path) == 9
    made = plan(
        "share a where layer < 2 per module rank 2\nshare b where layer >= 2 per kind rank 3"
    )
    assert [term.rank for term in made.terms_of["model.layers.1.mlp.up_proj"]] == [2]
    assert [term.rank for term in made.terms_of["model.layers.2.mlp.up_proj"]] == [3]
