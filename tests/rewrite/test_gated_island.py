"""A gated MLP, its product recomputed in the backward: the same numbers, fewer tensors kept, and where it must not be done."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F
from transformers.activations import ACT2FN

from bishare_dsl.rewrite.gated_island import gated_island
from bishare_dsl.rewrite.island import island
from bishare_dsl.transforms.factor import Dense

DTYPES = [torch.float32, torch.bfloat16]


class Mlp(nn.Module):
    """Frozen layers ``4 -> 6 -> 4``, with terms of 3 rows at `up` and 2 at `down`."""

    def __init__(self, act=None, dtype=torch.double, zero=False, bias=False):
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.up = (nn.Linear(4, 6, bias=bias, dtype=dtype) for _ in range(2))
        self.down = nn.Linear(6, 4, bias=bias, dtype=dtype)
        self.act = act or nn.SiLU()
        self.requires_grad_(False)
        shapes = [(3, 4), (3, 6), (2, 6), (2, 4)]
        self.factors = nn.ParameterList(torch.randn(s, dtype=dtype) for s in shapes)
        if zero:
            for b in self.factors[1::2]:
                nn.init.zeros_(b)

    def forward(self, x, *factors):
        a_in, b_up, a_out, b_down = map(Dense, factors or self.factors)
        uses = ((), ((0, 0, 3, 1.0),))
        gate, up = island(x, x, (a_in,), (self.gate, self.up), uses, ((), (b_up,)))
        uses = (((0, 0, 2, 1.0),),)
        return gated_island(self.act, gate, up, (a_out,), (self.down,), uses, ((b_down,),))[0]

    def plain(self, x):
        a_in, b_up, a_out, b_down = self.factors
        h = self.act(self.gate(x)) * (self.up(x) + x @ a_in.T @ b_up)
        return self.down(h) + h @ a_out.T @ b_down


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(2, 3, 4, dtype=torch.double, requires_grad=True)


def is_fused(y):
    return getattr(y.grad_fn, "act", None) is not None


ACTIVATIONS = ["silu", "gelu", "gelu_pytorch_tanh", "gelu_new"]


@pytest.mark.each_once
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_it_is_what_the_modules_give(x, name, bias):
    mlp = Mlp(ACT2FN[name], bias=bias)
    y = mlp(x)
    assert is_fused(y)
    torch.testing.assert_close(y, mlp.plain(x))
    with torch.no_grad():
        torch.testing.assert_close(mlp(x), mlp.plain(x))
    assert gradcheck(mlp, (x, *mlp.factors))


def test_the_product_is_made_again_where_something_needs_it(x):
    """The gradient of A, and a history of the others'; each time costs passes over wide tensors."""
    mlp = Mlp()
    frozen = mlp.factors[2].requires_grad_(False)
    for wants, history, times in ((False, False, 1), (True, False, 2), (False, True, 2)):
        frozen.requires_grad_(wants)
        y = mlp(x)
        seen = []
        mlp.act.forward = lambda h, seen=seen: seen.append(h) or F.silu(h)
        found = torch.autograd.grad(y.square().sum(), x, create_graph=history)
        del mlp.act.forward
        torch.testing.assert_close(found, torch.autograd.grad(mlp.plain(x).square().sum(), x))
        assert len(seen) == times


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_an_update_it_is_bit_identical(dtype):
    mlp = Mlp(dtype=dtype, zero=True)
    x = torch.randn(2, 7, 4, dtype=dtype)
    base = mlp.down(mlp.act(mlp.gate(x)) * mlp.up(x))
    assert torch.equal(mlp(x), base)
    with torch.no_grad():
        assert torch.equal(mlp(x), base)


def test_two_wide_tensors_are_kept_where_modules_keep_four(x):
    mlp = Mlp()

    def kept(run):
        wide = set()

        def keep(tensor):
            if tensor.numel() == 2 * 3 * 6 and tensor.shape[-1] == 6:
                wide.add(tensor.data_ptr())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            run(x)
        return len(wide)

    assert kept(mlp) == 2
    assert kept(mlp.plain) == 4


def test_it_can_be_differentiated_twice(x):
    mlp = Mlp(bias=True)
    assert gradgradcheck(mlp, (x, *mlp.factors))
