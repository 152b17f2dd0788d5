"""One call for a Gated MLP."""

import pytest

from bishare_dsl.rewrite.passes import FuseGatedMlp, FuseIslands
from tests.rewrite.passes.cases import Case, Gated, same_results, use

SHAPES = [(2, 4), (2, 6), (2, 6), (2, 4)]
BEHIND = FuseIslands(), FuseGatedMlp()


@pytest.mark.parametrize("target", ["left", "out"])
def test_what_reads_the_product_must_be_an_island(target):
    shapes = SHAPES[:2] if target == "left" else SHAPES[2:]
    part = Case(shapes, Gated, **{target: [use()]})
    assert ("gated_island" in names(part)) == (target == "out")
    same_results(part, *BEHIND)


@pytest.mark.parametrize("at", ["left", "out"])
def test_a_dropout_of_the_product_stays_as_it_is(at):
    """The mask cannot be recomputed."""
    terms = {"left": [use()], "out": [use((2, 3))]}
    terms[at] = [use((0, 1) if at == "left" else (2, 3), dropout=1e-12)]
    dropped = Case(SHAPES, Gated, **terms)
    assert ("gated_island" in names(dropped)) == (at == "left")
    same_results(dropped, *BEHIND)


def test_without_an_activation_there_is_no_gate():
    product = Case(SHAPES, left=[use()], out=[use((2, 3))])
    assert "gated_island" not in names(product)
    same_results(product, *BEHIND)


def test_what_is_read_elsewhere_stays():
    class GateSeen(Gated):
        def forward(self, x):
            gate = self.act(self.right(x))
            return self.out(self.left(x) * gate) + gate.sum()

    class ProductSeen(Gated):
        def forward(self, x):
            product = self.left(x) * self.act(self.right(x))
            return self.left(self.out(product)) * product

    for region in (GateSeen, ProductSeen):
        seen = Case(SHAPES, region, left=[use()], out=[use((2, 3))])
        assert "gated_island" not in names(seen)
        same_results(seen, *BEHIND)


def names(case):
    return {node.name for node in case.program(*BEHIND).forward.nodes}
