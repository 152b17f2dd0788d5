"""One call for a gated MLP."""

import pytest
from torch import nn

from bishare_dsl.rewrite.passes import AccumulateUps, FuseDowns, FuseGatedMlp, FuseIslands

SHAPES = [(2, 4), (2, 6), (2, 6), (2, 4)]
BEHIND = FuseDowns(), AccumulateUps(), FuseIslands(), FuseGatedMlp()


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
