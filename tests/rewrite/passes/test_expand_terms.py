"""Terms as nodes, one by one, behind the linear that they are added to."""

import pytest
import torch
from torch import nn


def test_a_term_is_a_down_and_an_up(case, use, same):
    program = case([(2, 4), (2, 6)], left=[use(scale=2.0)]).program()
    same(
        program.forward,
        """
        bishare_factors = self.bishare_factors()
        getitem = bishare_factors[0]
        getitem_1 = bishare_factors[1]
        mul_1 = mul(getitem_1, 2.0)
        left = self.left(x)
        down = down(x, getitem)
        up = up(left, down, mul_1)
        right = self.right(x)
        mul = mul(up, right)
        out = self.out(mul)
        return out
        """,
    )
    same(program.assembly, "return tensor_0, tensor_1")


def test_terms_add_up_and_siblings_use_one_tensor(case, use, same):
    shapes = [(2, 4), (2, 6), (1, 4), (1, 6)]
    program = case(shapes, left=[use((0, 1)), use((2, 3), rank=1)], right=[use((0, 1))]).program()
    same(
        program.forward,
        """
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
        down_2 = down(x, getitem)
        up_2 = up(right, down_2, getitem_1)
        mul = mul(up_1, up_2)
        out = self.out(mul)
        return out
        """,
    )


def test_a_window_has_constant_bounds(case, use, same):
    program = case([(2, 6), (2, 6)], out=[use(via="SS")], left=[use(via="SS")]).program()
    same(
        program.forward,
        """
        bishare_factors = self.bishare_factors()
        getitem = bishare_factors[0]
        getitem_1 = bishare_factors[1]
        getitem_2 = getitem[..., 1:5]
        getitem_3 = getitem_1[..., 0:6]
        getitem_4 = getitem[..., 0:6]
        getitem_5 = getitem_1[..., 1:5]
        left = self.left(x)
        down = down(x, getitem_2)
        up = up(left, down, getitem_3)
        right = self.right(x)
        mul = mul(up, right)
        out = self.out(mul)
        down_1 = down(mul, getitem_4)
        up_1 = up(out, down_1, getitem_5)
        return up_1
        """,
    )


def test_one_mask_for_each_input_and_probability(case, use, same):
    shapes = [(2, 4), (2, 6)]
    half, quarter = use(dropout=0.5), use(dropout=0.25)
    program = case(shapes, left=[half, half, use()], right=[half, quarter]).program()
    same(
        program.forward,
        """
        bishare_factors = self.bishare_factors()
        getitem = bishare_factors[0]
        getitem_1 = bishare_factors[1]
        training = self.training
        dropout = dropout(x, 0.5, training)
        training_1 = self.training
        dropout_1 = dropout(x, 0.25, training_1)
        left = self.left(x)
        down = down(dropout, getitem)
        up = up(left, down, getitem_1)
        down_1 = down(dropout, getitem)
        up_1 = up(up, down_1, getitem_1)
        down_2 = down(x, getitem)
        up_2 = up(up_1, down_2, getitem_1)
        right = self.right(x)
        down_3 = down(dropout, getitem)
        up_3 = up(right, down_3, getitem_1)
        down_4 = down(dropout_1, getitem)
        up_4 = up(up_3, down_4, getitem_1)
        mul = mul(up_2, up_4)
        out = self.out(mul)
        return out
        """,
    )


@pytest.mark.parametrize("p", [0.25, 0.5])
def test_dropout_drops_in_training_what_it_should(case, use, p):
    """`left` and `right` compute x with some of it dropped, since the base is zero and A B is one."""
    module, tensors = case(
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


def test_hooks_on_linears_see_the_base_of_each(case, use):
    shapes = [(2, 4), (2, 6), (2, 6), (2, 4)]
    terms = {"left": [use()], "right": [use(), use()], "out": [use((2, 3))]}
    module, _ = case(shapes, **terms).module()
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
