"""Compositions of transforms: every legal one against dense float64, and the illegal ones by their sorts."""

from itertools import product

import pytest
import torch
from pydantic import ValidationError

from bishare_dsl import parse_spec
from bishare_dsl.testing.checks import check_transform, pool_shapes
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.transforms import (
    Sort,
    Width,
    described,
    effective_pair,
    load_transform,
    transform_kind,
)
from bishare_dsl.transforms.described import largest_fit
from bishare_dsl.transforms.registry import BUILT_IN
from bishare_dsl.transforms.shipped.composed import COMPOSED, Composed, Step, compose
from tests.support.checks import check_spec
from tests.support.references import reference_pair

OPTIONS = {
    "KE": {"size": 4},
    "GT": {"size": 4},
    "VectorBank": {"vectors": 5, "length": 4},
    "Basis": {"count": 3},
    "Loadings": {"vectors": 5},
    "Shards": {"rows": 4, "shards": 2},
    "Gather": {"length": 29},
    "Rotation": {"chunks_A": 2, "chunks_B": 3},
}
"""Options that fit a small site."""

RANK = 4
KINDS = {name: transform_kind(name) for name in BUILT_IN}
FACTORS = [name for name, kind in KINDS.items() if kind.sort is Sort.FACTOR]
MIXERS = [name for name in FACTORS if KINDS[name].mixes]
BETWEEN = [name for name, kind in KINDS.items() if kind.sort is Sort.BETWEEN]
PAIRS = [name for name, kind in KINDS.items() if kind.sort is Sort.PAIR]


def step(name, as_=None, **options):
    given = {"count_A": 2, "count_B": 2} if name == "Mix" else OPTIONS.get(name, {})
    return Step(transform=name, options={**given, **options}, name=as_)


def check_reference(composed, rank, width):
    [shapes] = pool_shapes(composed, rank, [width]).values()
    random = torch.Generator().manual_seed(1)
    values = {
        role: torch.randint(256, shape, generator=random).double()
        if role in composed.fixed
        else torch.randn(shape, generator=random, dtype=torch.float64)
        for role, shape in shapes.items()
    }
    a, b = effective_pair(composed, values, rank, width, 1.0)
    expected_b, expected_a = reference_pair(composed, values, rank, width)
    torch.testing.assert_close(b.T @ a, expected_b @ expected_a, rtol=1e-9, atol=1e-9)


# At this width every factor fits.
WIDTH = Width(16, 24)
SIDES = [*product(FACTORS, ["SS"]), *product(["SS"], FACTORS)]


@pytest.mark.parametrize(("a", "b"), SIDES)
@pytest.mark.parametrize("between", [(), ("Core",)])
def test_a_transform_for_each_place(a, b, between):
    composed = compose([step(a)], [step(b)], [step(name) for name in between])
    assert check_transform(composed, RANK, [WIDTH])
    check_reference(composed, RANK, WIDTH)


@pytest.mark.parametrize(("first", "later"), [*product(FACTORS, MIXERS)])
@pytest.mark.parametrize("place", ["A", "B"])
def test_chains(place, first, later):
    chain = [step(first, "inner"), step(later, "outer")]
    composed = compose(**{place.lower(): chain})
    rows = composed.ranks(place, RANK)[0]
    if first == "Shards":  # It has its own number of rows.
        chain[0] = step("Shards", "inner", rows=rows)
        composed = compose(**{place.lower(): chain})
    assert check_transform(composed, RANK, [WIDTH])
    check_reference(composed, RANK, WIDTH)


@pytest.mark.parametrize("name", FACTORS)
@pytest.mark.parametrize("place", ["A", "B"])
def test_three_steps_and_two_cores(name, place):
    chain = [step(name, "first"), step("Loadings", "second", vectors=6), step("Basis", "third")]
    if name == "Shards":
        chain[0] = step("Shards", "first", rows=6)
    cores = [step("Core", "by_layer"), step("Core", "by_kind")]
    composed = compose(**{place.lower(): chain}, between=cores)
    assert {"by_layer", "by_kind", "second", "third"} <= {*composed.owned}
    assert check_transform(composed, RANK, [WIDTH])
    check_reference(composed, RANK, WIDTH)


def refused(why, **places):
    with pytest.raises(ValidationError, match=why):
        compose(**places)


def test_what_cannot_stand_there_is_refused_by_its_sort():
    core, kernel = step("Core"), step("KE")
    for name in PAIRS:
        refused(f"{name} makes both factors together", a=[step(name)])
        refused(f"{name} makes both factors together", between=[step(name), core])
    refused("Core stands between A and B", a=[core])
    refused("Core stands between A and B", b=[kernel, core])
    refused("KE makes a factor, and stands at A or B", between=[kernel])
    refused("KE fits a shared factor to a module, so that it comes first", a=[kernel, kernel])
    refused("KE fits a shared factor to a module", a=[step("SS"), kernel])


def test_two_steps_with_a_tensor_of_one_name_need_names():
    refused(
        "two steps have a tensor `core`: name the steps with `as`",
        between=[step("Core"), step("Core")],
    )
    composed = compose(between=[step("Core", "by_layer"), step("Core", "by_kind")])
    assert composed.owned == ("by_layer", "by_kind")
    refused("two steps have a tensor `x`", between=[step("Core", "x"), step("Core", "x")])
    with pytest.raises(ValidationError, match="a step cannot be called 'gain_out'"):
        step("Core", "gain_out")


def test_rows_are_walked_backwards():
    composed = compose(a=[step("SS"), step("Basis"), step("Loadings", vectors=7)])
    assert composed.ranks("A", 5) == [21, 7, 5]
    assert composed.shared_shape("A", 5, [9, 12]) == (21, 12)
    odd = compose(a=[step("Shards"), step("Loadings")], b=[step("SS")])
    with pytest.raises(ValueError, match="Shards gives 4 rows, and Loadings after it needs 5"):
        odd.check_rank(RANK)
    with pytest.raises(ValueError, match="A has 4 rows, and B 6"):
        compose(a=[step("Shards")], b=[step("SS")]).check_rank(6)


def test_one_tensor_starts_at_zero_the_last_on_the_way():
    def zeros(composed):
        return [role for role in composed.roles if composed.start(role).init == "zeros"]

    assert zeros(compose(a=[step("KE")])) == ["B"]
    assert zeros(compose(b=[step("SS"), step("Loadings")])) == ["L_B"]
    cores = [step("Core", "one"), step("Core", "two")]
    assert zeros(compose(b=[step("SS"), step("Loadings")], between=cores)) == ["one"]


def test_it_loads_by_name_and_its_hash_is_that_of_its_options():
    composed = compose(a=[step("KE")], between=[step("Core", "c")])
    again = load_transform(COMPOSED, composed.options())
    assert isinstance(again, Composed)
    assert (again, hash(again)) == (composed, hash(composed))
    assert again.options() == {
        "A": [
            {
                "transform": "KE",
                "options": {
                    "size": 4,
                    "kernel": "kaiming_normal",
                    "shared_rank": None,
                    "rowwise": False,
                },
            }
        ],
        "between": [{"transform": "Core", "options": {}, "name": "c"}],
    }


def test_singular_starts_are_allowed_where_the_inner_factor_is_as_wide_as_the_weight():
    assert compose(a=[step("SS"), step("Loadings")], b=[step("KE")]).plain == ("A",)
    assert compose(b=[step("Loadings")]).plain == ("A", "B")


COMPOSITIONS = [
    compose([step("KE")], [step("SS")], [step("Core")]),
    compose([step("SS")], [step("KE"), step("Loadings")]),
    compose([step("Basis", "first"), step("Mix", "last")], [step("Rotation", chunks_B=2)]),
    compose(between=[step("Core", "one"), step("Core", "two", cores=2)]),
]


@pytest.mark.parametrize("composed", COMPOSITIONS)
def test_every_invariant_holds(composed):
    """Fresh, count, gradients, save and load, merge, export, seed: as for any transform."""
    via = described.via(COMPOSED, composed.options())
    text = f"spec s\ntarget q_proj, up_proj\nshare a per module rank 3 via {via}\n"
    check_spec(parse_spec(text), tiny_model())


def test_auto_finds_the_largest_size_of_a_step():
    composed = compose([step("KE", size=256)], [step("SS"), step("Loadings")])
    assert composed.auto == ("A.0.size",)
    size = largest_fit(composed, "A.0.size", [(4, Width(48, 24)), (4, Width(32, 24))])
    assert size == 8
    assert composed.with_option("A.0.size", size).A[0].options["size"] == 8


def test_warnings_are_at_their_step():
    composed = compose([step("KE", size=5)])
    [problem] = composed.review(3, [Width(12, 12)])
    assert problem.loc == ("via", "A", 0, "options", "size")


def test_it_is_written_as_in_a_spec():
    composed = compose([step("KE", "k")], [step("SS"), step("Loadings")], [step("Core", "c")])
    written = described.via(COMPOSED, composed.options())
    assert written == (
        "A KE(size = 4, kernel = kaiming_normal) as k, between Core as c, "
        "B SS(slice = centre) then Loadings(vectors = 5)"
    )
