"""One product for all the terms of a linear."""

from bishare_dsl.rewrite.passes import AccumulateUps, FuseDowns, ShareFactors

SHAPES = [(2, 4), (2, 6), (1, 4), (1, 6)]


def test_a_chain_is_one_product(case, use, same, same_results):
    chain = case(SHAPES, left=[use(), use((2, 3), rank=1)])
    before = """
        bishare_factors = self.bishare_factors()
        getitem = bishare_factors[0]
        getitem_1 = bishare_factors[1]
        getitem_2 = bishare_factors[2]
        getitem_3 = bishare_factors[3]
        left = self.left(x)
        down = down(x, getitem)
        up = up(left, down, getitem_1)
        down_1 = down(x, getitem_2)
        up_1 = up(up, down_1, getitem_3)
        right = self.right(x)
        mul = mul(up_1, right)
        out = self.out(mul)
        return out
        """
    after = """
        bishare_factors = self.bishare_factors()
        getitem = bishare_factors[0]
        getitem_1 = bishare_factors[1]
        getitem_2 = bishare_factors[2]
        getitem_3 = bishare_factors[3]
        cat = cat(getitem_1, getitem_3)
        left = self.left(x)
        down = down(x, getitem)
        down_1 = down(x, getitem_2)
        cat_1 = cat(down, down_1, -1)
        up_2 = up(left, cat_1, cat)
        right = self.right(x)
        mul = mul(up_2, right)
        out = self.out(mul)
        return out
        """
    same(chain.program().forward, before)
    same(chain.program(AccumulateUps()).forward, after)
    same_results(chain, AccumulateUps())


def test_columns_side_by_side_are_taken_together(case, use, same, same_results):
    """After `FuseDowns`, the columns of both terms of `left` are all of z, and `right`'s a part."""
    shared = case(SHAPES, left=[use(), use((2, 3), rank=1)], right=[use((2, 3), rank=1)])
    steps = ShareFactors(), FuseDowns(), AccumulateUps()
    same(
        shared.program(*steps).forward,
        """
        bishare_factors = self.bishare_factors()
        getitem = bishare_factors[0]
        getitem_1 = bishare_factors[1]
        getitem_2 = bishare_factors[2]
        getitem_3 = bishare_factors[3]
        cat = cat(getitem, getitem_2)
        cat_1 = cat(getitem_1, getitem_3)
        left = self.left(x)
        down_3 = down(x, cat)
        narrow_1 = down_3.narrow(-1, 2, 1)
        up_3 = up(left, down_3, cat_1)
        right = self.right(x)
        up_2 = up(right, narrow_1, getitem_3)
        mul = mul(up_3, up_2)
        out = self.out(mul)
        return out
        """,
    )
    same_results(shared, *steps)


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
