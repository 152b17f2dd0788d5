"""What a plan holds: names, owners, shapes, starts, scales, counts, JSON."""

import itertools

from bishare_dsl.language import parse_spec
from bishare_dsl.models.presets import preset
from bishare_dsl.models.site import Architecture, Site
from bishare_dsl.plan import Plan, build_plan
from bishare_dsl.plan.names import attribute

THREE = """
share local per module rank 1
share intra per layer  rank 2 via KE(size = 4)
share inter per model  rank 3 via GT(size = 6, gate_rank = 2)
"""


def test_tensor_names_are_key_paths(plan):
    made = plan(f"target q_proj, down_proj\n{THREE}")
    layer = [name for name in made.tensor if "layer_3" in name or "layers.3" in name]
    roles = {"local": "A B", "intra": "K_A K_B", "inter": "G_id G_iu G_od G_ou"}
    own = {
        f"{share}.layers.3.{site}.{role}"
        for site in ("self_attn.q_proj", "mlp.down_proj")
        for share, names in roles.items()
        for role in names.split()
    }
    assert {*layer} == {"intra.layer_3.A", "intra.layer_3.B", *own}
    assert {"inter.A", "inter.B"} < set(made.tensor)


def test_names_stay_apart_where_two_towers_have_the_same_layers():
    sites = tuple(
        Site.at(f"{tower}.layers.{i}.q_proj", 4, 6) for tower in ("eye", "ear") for i in range(2)
    )
    towers = Architecture(name="two", family="two", layers=2, parameters=1, sites=sites)
    spec = parse_spec(
        "spec s\ntarget q_proj\nshare a per module rank 1\nshare b per layer rank 1 via KE(size = 2)"
    )
    plan, _ = build_plan(spec, towers)
    assert len(plan.tensor) == len(plan.tensors) == 4 * 2 + 2 * 2 + 4 * 2
    assert "a.ear.layers.1.q_proj.A" in plan.tensor


def test_shapes_are_rank_major(plan):
    made = plan("target q_proj, down_proj\nshare s per model rank 3 via SS")
    assert made.tensor["s.A"].shape == (3, 18)  # the widest input: down_proj's
    assert made.tensor["s.B"].shape == (3, 20)  # the widest output: q_proj's


def test_counts(plan):
    made = plan(f"target q_proj, down_proj\n{THREE}")
    assert made.shares == {
        "local": 4 * (12 + 20 + 18 + 12),
        "intra": 4 * (2 * 4 * 2 + (3 + 5) + (5 + 3)),
        "inter": 2 * 3 * 6 + 4 * 2 * (12 + 6 + 6 + 20 + 18 + 6 + 6 + 12),
    }
    assert made.trainable == sum(made.shares.values())


def test_json_both_ways(plan):
    for share in (*THREE.strip().splitlines(), "share s per layer in 0..1, kind, in / 4 rank 2"):
        made = plan(share)
        assert made.tensor  # A cached property is not part of what is compared or written.
        again = Plan.model_validate_json(made.model_dump_json())
        assert again == made
        assert [p.key for p in again.pools] == [p.key for p in made.pools]
        assert [[type(v) for v in p.key] for p in again.pools] == [
            [type(v) for v in p.key] for p in made.pools
        ]


def test_order_of_shares_changes_nothing_else(plan):
    shares = THREE.strip().splitlines()
    first = plan("\n".join(shares))
    for order in itertools.permutations(shares):
        other = plan("\n".join(order))
        assert set(other.tensors) == set(first.tensors)
        assert {pool.tensor: pool for pool in other.pools} == {p.tensor: p for p in first.pools}
        assert other.trainable == first.trainable


def test_names_that_are_one_attribute_are_told_apart(small):
    """In a module `a.b.A` is the attribute `a__b__A`, and a model may call a module `a__b`."""
    paths = ("a.b__c", "a__b.c")
    sites = tuple(Site.at(f"layers.0.{path}", 4, 4) for path in paths)
    made, _ = build_plan(
        parse_spec("spec s target b__c, c share s per parent, kind rank 1 via KE(size = 2)"),
        small.model_copy(update={"sites": sites}),
    )
    pooled = {term.tensors["A"] for term in made.terms}
    assert pooled == {"s.a.b__c.A", "s.a__b.c_.A"}
    assert len({(tensor.owner, attribute(tensor.name)) for tensor in made.tensors}) == 8


def test_a_magnitude_written_above_its_share_comes_last():
    spec = "spec s\ntarget q_proj\nmagnitude per module\nshare x per module rank 2\n"
    plan, _ = build_plan(parse_spec(spec), preset("llama-7b"))
    for terms in plan.terms_of.values():
        assert [term.is_magnitude for term in terms] == [False, True]


def test_only_trained_tensors_are_copied_to_be_subtracted():
    """A frozen tensor keeps its initial values, so that the term that subtracts them reads it too."""
    spec = (
        "spec s\ntarget q_proj and layer == 0\n"
        "share x per module rank 2 via Core init A svd, B svd, core normal freeze A, B\n"
    )
    plan, _ = build_plan(parse_spec(spec), preset("llama-7b"))
    copied = [tensor.like for tensor in plan.tensors if tensor.like]
    assert copied == ["x.layers.0.self_attn.q_proj.core"]
    start = next(term for term in plan.terms if term.share == "x.start")
    assert start.tensors["A"] == "x.layers.0.self_attn.q_proj.A"
