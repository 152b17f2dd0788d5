"""One call for the layers that read one input."""

from bishare_dsl.language import parse_spec
from bishare_dsl.models.inspect import inspect_model
from bishare_dsl.plan import build_plan
from bishare_dsl.rewrite import ops
from bishare_dsl.rewrite.adapt import compile_plan
from bishare_dsl.rewrite.island import add_terms, spans_of
from bishare_dsl.rewrite.leaves import base_forward
from bishare_dsl.rewrite.passes import FuseIslands, ShareFactors
from tests.rewrite.passes.cases import Case, same_results, use
from tests.support.families import tiny_model

SHAPES = [(2, 4), (2, 6), (1, 4), (1, 6), (2, 6), (2, 4)]
BEHIND = ShareFactors(), FuseIslands()


def test_a_sibling_without_terms_is_in_the_island():
    """Its gradient of x is then accumulated with theirs. `out`, which is alone, stays as it is."""
    one = Case(SHAPES[:2], left=[use()])
    (island,) = islands(one, *BEHIND)
    assert [node.target for node in island.args[3]] == ["left", "right"]
    assert island.args[4] == (((0, 0, 2, 1.0),), ())
    assert island.args[5][1] == ()
    same_results(one, *BEHIND)


def test_a_layer_alone_is_an_island():
    alone = Case(SHAPES, out=[use((4, 5))], left=[use(), use((2, 3), rank=1)])
    assert [len(island.args[3]) for island in islands(alone, *BEHIND)] == [2, 1]
    same_results(alone, *BEHIND)


def test_the_factors_may_read_a_dropout():
    """`x` goes into the layers and its dropout into the factors."""
    dropped = Case(SHAPES[:4], left=[use(dropout=1e-12)], right=[use((2, 3), 1, dropout=1e-12)])
    (island,) = islands(dropped, *BEHIND)
    x, read = island.args[:2]
    assert (x.name, read.name) == ("x", "dropout")
    same_results(dropped, *BEHIND)


def test_several_dropouts_stay_as_they_are():
    several = Case(SHAPES[:4], left=[use(dropout=1e-12)], right=[use((2, 3), rank=1)])
    assert islands(several, *BEHIND) == []
    same_results(several, *BEHIND)


def test_columns_apart_and_columns_shared():
    """`left` reads all three terms, `right` the outer ones."""
    first, between, last = use(), use((2, 3), rank=1), use((4, 5), rank=1)
    apart = Case([*SHAPES[:4], (1, 4), (1, 6)], left=[first, between, last], right=[last, first])
    (island,) = islands(apart, *BEHIND)
    assert [spans_of(uses) for uses in island.args[4]] == [((0, 4),), ((0, 2), (3, 1))]
    same_results(apart, *BEHIND)


def test_a_layer_that_is_a_region_has_one_product_each_way():
    model = tiny_model("gpt2")
    spec = parse_spec("spec s\ntarget c_attn\nshare x per module rank 2\nshare y per model rank 1")
    plan, _ = build_plan(spec, inspect_model(model))
    graphs, steps = [], (ShareFactors(), FuseIslands())
    compile_plan(model, plan, lambda *seen: graphs.append(seen[2]), steps)
    targets = [node.target for node in graphs[-1].forward.nodes]
    assert [targets.count(t) for t in (base_forward, ops.down, ops.up, add_terms)] == [1, 0, 0, 1]


def islands(case, *steps):
    return [n for n in case.program(*steps).forward.nodes if n.name.startswith("island")]
