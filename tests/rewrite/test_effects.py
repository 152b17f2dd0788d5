"""What is written to in place: an adapted model reads before and behind it what its base does, and trains as it does."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.rewrite.adapted import adapted

SPEC = "spec s\ntarget every\nshare a per module rank 2\nshare b per model rank 2 via SS"


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(6, 6) for _ in range(3))
        self.act, self.relu = nn.ReLU(inplace=True), nn.ReLU()


class Stack(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layers = nn.ModuleList([layer])

    def forward(self, x):
        return self.layers[0](x.clone())


def an_activation(self, x):
    return self.down(self.act(self.gate(x)) * self.up(x))


def a_method_of_a_view(self, x):
    y = self.gate(x)
    y[..., 1:].add_(1)
    return self.down(y) + self.up(x).mul_(2)


def an_assignment(self, x):
    y = residual = self.gate(x)
    y += self.up(x)
    return residual * 2 + self.down(x)


def what_the_layers_read(self, x):
    y = self.gate(x)
    F.relu(x.view(-1, 6), inplace=True)
    return y + self.up(x) * self.down(x)


def what_an_activation_read(self, x):
    gate = self.gate(x)
    s = self.relu(gate)
    gate.mul_(2)
    return self.down(s * self.up(x)) + gate


def write(x):
    x.mul_(-1)


def what_a_function_wrote_to(self, x):
    y = self.gate(x)
    write(x)
    return y * self.up(x) + self.down(x)


# A layer needs what it has read for its gradient, whoever writes to it.
UNTRAINED = (what_the_layers_read, what_a_function_wrote_to)


@pytest.mark.parametrize(
    "forward",
    [an_activation, a_method_of_a_view, an_assignment, what_an_activation_read, *UNTRAINED],
)
def test_in_place(forward):
    torch.manual_seed(0)
    model = Stack(type("Mlp", (Mlp,), {"forward": forward})()).double()
    x = torch.randn(2, 3, 6, dtype=torch.double)
    before = model(x)
    case = adapted(model, SPEC)
    assert case.notes == ()
    assert torch.equal(case.model(x), before)
    dense = case.train().reference()
    with torch.no_grad():
        torch.testing.assert_close(case.model(x), dense(x))
    if forward in UNTRAINED:
        return
    trained = list(case.tensors.values())
    for one, other in zip(
        torch.autograd.grad(case.model(x).square().sum(), trained),
        torch.autograd.grad(dense(x).square().sum(), trained),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
