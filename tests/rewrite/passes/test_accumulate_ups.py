"""One product for all the terms of a linear."""

from bishare_dsl.rewrite.passes import AccumulateUps, FuseDowns, ShareFactors

SHAPES = [(2, 4), (2, 6), (1, 4), (1, 6)]


def test_terms_are_taken_in_the_order_of_their_columns(case, use, same_results):
    """`right` uses the terms of `left` in the other order: no ``cat`` of columns is needed."""
    one, other = use(), use((2, 3), rank=1)
    crossed = case(SHAPES, left=[one, other], right=[other, one])
    steps = ShareFactors(), FuseDowns(), AccumulateUps()
    cats = [n for n in crossed.program(*steps).forward.nodes if n.name.startswith("cat")]
    assert [(len(node.args[0]), node.args[1:]) for node in cats] == [(2, ())] * 3
    same_results(crossed, *steps)


def test_columns_apart_are_put_together(case, use, same_results):
    """`right` leaves out the term between."""
    one, between, other = use(), use((4, 5), rank=1), use((2, 3), rank=1)
    shapes = [*SHAPES, (1, 4), (1, 6)]
    apart = case(shapes, left=[one, between, other], right=[one, other])
    steps = ShareFactors(), FuseDowns(), AccumulateUps()
    cats = [n for n in apart.program(*steps).forward.nodes if n.name.startswith("cat")]
    assert [n.args[1:] for n in cats if n.args[1:]] == [(-1,)]
    same_results(apart, *steps)
