"""Terms as nodes, one by one, behind the linear that they are added to."""

import pytest
import torch
from torch import nn

from bishare_dsl.rewrite.passes import FuseIslands, ShareFactors
from tests.rewrite.passes.cases import Case, use


@pytest.mark.parametrize("p", [0.25, 0.5])
def test_dropout_drops_in_training_what_it_should(p):
    """`left` and `right` compute x with some of it dropped, since the base is zero and A B is one."""
    module, tensors = Case(
        [(4, 4), (4, 6)], left=[use(rank=4, dropout=p)], right=[use(rank=4, dropout=p)]
    ).module()
    seen = {}
    with torch.no_grad():
        for tensor in tensors:
            tensor.copy_(torch.eye(*tensor.shape))
        module.out.weight.copy_(torch.eye(4, 6))
        for linear in (module.left, module.right):
            linear.weight.zero_()
            linear.bias.zero_()
        module.out.bias.zero_()
        for name in ("left", "right"):
            linear = module.get_submodule(name)
            linear.register_forward_hook(lambda _, __, y, name=name: seen.update({name: y}))
        x = torch.ones(1000, 4, dtype=torch.double)
        torch.manual_seed(0)
        y = module(x)
        # One mask for both: a product of two different ones would keep (1 - p) squared of it.
        assert set(y.unique().tolist()) == {0.0, (1 / (1 - p)) ** 2}
        assert (y != 0).double().mean().item() == pytest.approx(1 - p, abs=0.05)
        assert not seen["left"].any()
        assert torch.equal(module.eval()(x), x)


def test_hooks_on_linears_see_the_base_of_each():
    shapes = [(2, 4), (2, 6), (2, 6), (2, 4)]
    terms = {"left": [use()], "right": [use(), use()], "out": [use((2, 3))]}
    module, _ = Case(shapes, **terms).module()
    calls = []
    for linear in (module.left, module.right, module.out):
        linear.register_forward_hook(lambda m, args, y: calls.append((m, args[0], y, y.clone())))
    with torch.no_grad():
        module(torch.randn(2, 3, 4, dtype=torch.double))
        for linear, x, y, copied in [*calls]:
            # Nothing that came later wrote into the output, either.
            assert torch.equal(y, copied)
            assert torch.equal(y, nn.functional.linear(x, linear.weight, linear.bias))
    assert [call[0] for call in calls] == [module.left, module.right, module.out]


class Twice(nn.Module):
    """A layer that is called twice on one input, and what it gives is written to in between."""

    def __init__(self):
        super().__init__()
        self.left = nn.Linear(4, 6)
        self.out = nn.Linear(6, 4)

    def forward(self, x):
        first = self.left(x)
        second = self.left(x)
        return self.out(first.mul_(2) + second)


class Keeping(nn.Linear):
    """Keeps what it gave."""

    def forward(self, x):
        self.gave = super().forward(x)
        return self.gave


@pytest.mark.parametrize("kind", [nn.Linear, Keeping])
def test_few_tokens_are_written_to_where_nobody_looks(kind):
    module, _ = Case([(2, 4), (2, 6)], Twice, left=[use(), use()]).module(
        ShareFactors(), FuseIslands()
    )
    module.left.__class__ = kind
    x = torch.randn(2, 3, 4, dtype=torch.double)
    with torch.no_grad():
        few = module(x)
        if kind is Keeping:
            expected = nn.functional.linear(x, module.left.weight, module.left.bias)
            assert torch.equal(module.left.gave, expected)
    torch.testing.assert_close(few, module(x))
