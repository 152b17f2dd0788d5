"""Any of the optimisations computes what the terms one by one do."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from bishare_dsl.rewrite.passes import OPTIMISATIONS
from tests.rewrite.passes.cases import Case, Gated, Siblings, use

# Slots 0-1 plain, 2-3 as wide as the widest, 4-7 KE, 8-13 GT, 14-15 of another rank.
SHAPES = [(2, 4), (2, 6), (2, 9), (2, 9), (1, 3), (1, 3), (2, 2), (2, 2)]
SHAPES += [(2, 5), (2, 5), (1, 4), (1, 5), (1, 5), (1, 6), (3, 4), (3, 6)]


@st.composite
def terms(draw):
    kind = draw(st.sampled_from(["plain", "window", "KE", "GT", "other"]))
    scale = draw(st.sampled_from([1.0, 2.0]))
    # So small that nothing is ever dropped: another input to the products, and the same numbers.
    dropout = draw(st.sampled_from([0.0, 1e-12]))
    common = {"scale": scale, "dropout": dropout}
    match kind:
        case "plain":
            return use((0, 1), **common)
        case "window":
            window = draw(st.sampled_from(["leading", "centre", "trailing"]))
            return use((2, 3), via="SS", slice=window, **common)
        case "KE":
            return use(range(4, 8), via="KE", size=3, shared_rank=1, **common)
        case "GT":
            return use(range(8, 14), via="GT", size=5, **common)
        case _:
            return use((14, 15), rank=3, **common)


@given(data=st.data())
def test_any_subset(data):
    some = st.lists(terms(), min_size=1, max_size=4)
    # `out` reads what the others write: their A are of its B's shape.
    out = st.lists(st.sampled_from([use((1, 0)), use((15, 14), rank=3)]), min_size=1, max_size=2)
    drawable = {"left": some, "right": some, "out": out}
    names = data.draw(st.sets(st.sampled_from(sorted(drawable)), min_size=1))
    region = {"region": Gated} if data.draw(st.booleans()) else {}
    drawn = Case(SHAPES, **region, **{name: data.draw(drawable[name]) for name in sorted(names)})
    some = data.draw(st.sets(st.sampled_from(OPTIMISATIONS)))
    steps = [step for step in OPTIMISATIONS if step in some]
    frozen = data.draw(st.booleans())
    module, tensors = drawn.module(frozen=frozen)
    expected = outcome(module, tensors)
    module, tensors = drawn.module(*steps, frozen=frozen)
    for one, other in zip(expected, outcome(module, tensors), strict=True):
        if one is None:
            assert other is None
        else:
            torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9)


def outcome(module, tensors):
    x = torch.linspace(-1, 1, 24, dtype=torch.double).view(2, 3, 4).requires_grad_()
    y = module(x)
    y.square().sum().backward()
    with torch.no_grad():
        kept = module(x)
    return [y, kept, x.grad, module.out.weight.grad, *(tensor.grad for tensor in tensors)]


def dense(linear, *terms):
    """`linear` with ``scale B^T A`` in its weight, for each term: the scale, A and B."""
    weight = linear.weight + sum(scale * b.T @ a for scale, a, b in terms)
    return lambda x: torch.nn.functional.linear(x, weight, linear.bias)


X = torch.linspace(-1, 1, 24, dtype=torch.double).view(2, 3, 4)


def test_a_layer_that_is_called_by_keyword_is_left_alone():
    class Keyword(Siblings):
        def forward(self, x):
            return self.out(input=self.left(x)) + self.out(self.right(x))

    keyword = Case([(2, 4), (2, 6)], Keyword, left=[use()])
    module, (a, b) = keyword.module(*OPTIMISATIONS, frozen=True)
    y = module.out(dense(module.left, (1.0, a, b))(X)) + module.out(module.right(X))
    torch.testing.assert_close(module(X), y)
