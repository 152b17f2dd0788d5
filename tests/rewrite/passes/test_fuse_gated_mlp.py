"""One call for a gated MLP."""

import pytest
from torch import nn

from bishare_dsl.rewrite.passes import AccumulateUps, FuseDowns, FuseGatedMlp, FuseIslands

SHAPES = [(2, 4), (2, 6), (2, 6), (2, 4)]
BEHIND = FuseDowns(), AccumulateUps(), FuseIslands(), FuseGatedMlp()


def test_the_pattern_is_one_call(case, gated, use, same, same_results):
    """The gate comes first, whichever side of the product it stands on."""
    mlp = case(SHAPES, gated, left=[use()], out=[use((2, 3))])
    same(
        mlp.program(*BEHIND[:3]).forward,
        """
        bishare_factors = self.bishare_factors()
        getitem = bishare_factors[0]
        getitem_1 = bishare_factors[1]
        getitem_2 = bishare_factors[2]
        getitem_3 = bishare_factors[3]
        left_1 = self.left
        right_1 = self.right
        island = island(x, x, getitem, left_1, right_1, 0, 2, , getitem_1, None)
        getitem_4 = island[0]
        getitem_5 = island[1]
        act = self.act(getitem_5)
        mul = mul(getitem_4, act)
        out_1 = self.out
        island_1 = island(mul, mul, getitem_2, out_1, 0, 2, getitem_3)
        getitem_6 = island_1[0]
        return getitem_6
        """,
    )
    same(
        mlp.program(*BEHIND).forward,
        """
        bishare_factors = self.bishare_factors()
        getitem = bishare_factors[0]
        getitem_1 = bishare_factors[1]
        getitem_2 = bishare_factors[2]
        getitem_3 = bishare_factors[3]
        left_1 = self.left
        right_1 = self.right
        out_1 = self.out
        act_1 = self.act
        gated_mlp = gated_mlp(x, getitem, right_1, left_1, , 0, 2, None, getitem_1, act_1, getitem_2, out_1, 0, 2, getitem_3)
        return gated_mlp
        """,
    )
    same_results(mlp, *BEHIND)


@pytest.mark.parametrize("target", ["left", "out"])
def test_a_part_alone_stays_as_it_is(case, gated, use, same_results, target):
    part = case(SHAPES, gated, **{target: [use((0, 1) if target == "left" else (2, 3))]})
    assert "gated_mlp" not in names(part)


def test_dropouts_stay_as_they_are(case, gated, use, same_results):
    """The mask cannot be made again."""
    for at in ("left", "out"):
        terms = {"left": [use()], "out": [use((2, 3))]}
        terms[at] = [use((0, 1) if at == "left" else (2, 3), dropout=1e-12)]
        dropped = case(SHAPES, gated, **terms)
        assert "gated_mlp" not in names(dropped)
        same_results(dropped, *BEHIND)


def test_without_an_activation_there_is_no_gate(case, use, same_results):
    product = case(SHAPES, left=[use()], out=[use((2, 3))])
    assert "gated_mlp" not in names(product)
    same_results(product, *BEHIND)


def test_what_is_read_elsewhere_stays(case, gated, use, same_results):
    class GateSeen(gated):
        def forward(self, x):
            gate = self.act(self.right(x))
            return self.out(self.left(x) * gate) + gate.sum()

    class ProductSeen(gated):
        def forward(self, x):
            product = self.left(x) * self.act(self.right(x))
            return self.left(self.out(product)) * product

    class ReadByTwo(gated):
        def __init__(self):
            super().__init__()
            self.other = nn.Linear(6, 4)

        def forward(self, x):
            product = self.left(x) * self.act(self.right(x))
            return self.out(product) + self.other(product)

    for region in (GateSeen, ProductSeen, ReadByTwo):
        seen = case(SHAPES, region, left=[use()], out=[use((2, 3))])
        assert "gated_mlp" not in names(seen)
        same_results(seen, *BEHIND)


def names(case):
    return {node.name for node in case.program(*BEHIND).forward.nodes}
