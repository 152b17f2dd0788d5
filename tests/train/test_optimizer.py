import pytest
import torch

from bishare_dsl.train.state import from_bytes, load_optimizer, optimizer_state, to_bytes


def tensors():
    drawn = torch.Generator().manual_seed(0)
    return {n: torch.nn.Parameter(torch.randn(3, generator=drawn)) for n in ("a.A", "a.B", "b.A")}


def made(kind, named, order, **more):
    groups = [{"params": [named[n] for n in names], "weight_decay": i / 10} for i, names in order]
    return kind(groups, lr=0.1, **more)


def step(optimizer, named):
    for number, tensor in enumerate(named.values()):
        tensor.grad = tensor.detach() * (number + 1)
    optimizer.step()


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (torch.optim.AdamW, {"fused": True}),
        (torch.optim.AdamW, {"amsgrad": True}),
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.SGD, {}),
        (torch.optim.RMSprop, {"centered": True}),
        (torch.optim.Adafactor, {}),
    ],
)
def test_another_optimizer_goes_on_alike(kind, more):
    """Also one that has the same tensors in another order."""
    one, other = tensors(), tensors()
    first = made(kind, one, [(0, ["a.A", "a.B"]), (1, ["b.A"])], **more)
    for _ in range(3):
        step(first, one)
    state = from_bytes(*to_bytes(optimizer_state(first, one)))
    for name, tensor in other.items():
        tensor.data.copy_(one[name])
    second = made(kind, other, [(0, ["a.B", "a.A"]), (1, ["b.A"])], **more)
    step(first, one)
    load_optimizer(second, other, state)
    step(second, other)
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_of_other_tensors():
    named = tensors()
    state = optimizer_state(made(torch.optim.AdamW, named, [(0, ["a.A", "b.A"])]), named)
    with pytest.raises((KeyError, ValueError)):
        load_optimizer(made(torch.optim.AdamW, named, [(0, ["a.B", "b.A"])]), named, state)
