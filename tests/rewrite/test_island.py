"""Layers that read one input, run as one: the same numbers, and where it must not be done."""

import contextlib

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

from bishare_dsl.rewrite.island import island
from bishare_dsl.transforms.factor import Dense

# Two terms of 2 and 3 rows: the first layer reads both, the second only the second one, the third
# both in the other order, and the last none.
FIRST, SECOND = (0, 0, 2, 1.0), (1, 2, 3, 1.0)
USES = ((FIRST, SECOND), (SECOND,), (SECOND, FIRST), ())
ROWS = (5, 3, 5, 0)


class Island(nn.Module):
    """Four frozen layers, one with a bias, and the factors of their terms."""

    def __init__(self, dtype=torch.double, zero=False):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(4, 3 + i, bias=i == 1, dtype=dtype) for i in range(4))
        self.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(5, 4, dtype=dtype))
        self.bs = nn.ParameterList(
            torch.zeros(r, 3 + i, dtype=dtype) if zero else torch.randn(r, 3 + i, dtype=dtype)
            for i, r in enumerate(ROWS)
            if r
        )

    def forward(self, x, read=None):
        return self.run(x, x if read is None else read, self.a, *self.bs)

    def run(self, x, read, a, *bs):
        downs = Dense(a[:2]), Dense(a[2:])
        ups = [
            [Dense(part) for part in b.split([rows for _, _, rows, _ in uses])]
            for b, uses in zip(bs, USES, strict=False)
        ]
        return island(x, read, downs, tuple(self.layers), USES, (*ups, ()))

    def dense(self, x, read=None):
        """`W x + B^T A read`, from the definition."""
        z = (x if read is None else read) @ self.a.T
        picked = [z, z[..., 2:], torch.cat([z[..., 2:], z[..., :2]], -1)]
        added = [part @ b for part, b in zip(picked, self.bs, strict=True)]
        return [layer(x) + (added[i] if i < 3 else 0) for i, layer in enumerate(self.layers)]


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(2, 3, 4, dtype=torch.double, requires_grad=True)


def is_fused(ys):
    return all(type(y.grad_fn).__name__ == "_IslandBackward" for y in ys)


def test_it_is_what_the_layers_and_the_factors_give(x):
    module = Island()
    read = x * 0.5
    for given in (None, read):
        ys = module(x, given)
        assert is_fused(ys)
        torch.testing.assert_close(list(ys), module.dense(x, given))
        with torch.no_grad():
            torch.testing.assert_close(list(module(x, given)), module.dense(x, given))


@pytest.mark.parametrize("given", [False, True], ids=["x", "its dropout"])
def test_its_gradients_are_those_of_the_formula(x, given):
    """Once and twice, by finite differences; the dropout is made from x, and x counts once."""
    module = Island()
    parameters = [module.a, *module.bs]

    def run(x, *parameters):
        read = x.sin() if given else x
        return module.run(x, read, *parameters)

    for start in (x, x.detach()):  # In the first block nothing before the layers trains.
        assert gradcheck(run, (start, *parameters))
        assert gradgradcheck(run, (start, *parameters))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_without_an_update_the_layers_are_bit_identical(dtype):
    module = Island(dtype, zero=True)
    x = torch.randn(2, 7, 4, dtype=dtype)
    for given in (x, x.transpose(0, 1), x[:, ::2]):
        for context in (contextlib.nullcontext, torch.no_grad):
            with context():
                for y, layer in zip(module(given), module.layers, strict=True):
                    assert torch.equal(y, layer(given))


def test_factors_train_in_their_own_dtype():
    module = Island(torch.bfloat16)
    module.a.data, module.bs[0].data = module.a.data.float(), module.bs[0].data.float()
    x = torch.randn(2, 3, 4, dtype=torch.bfloat16, requires_grad=True)
    ys = module(x)
    assert is_fused(ys)
    sum(y.float().sum() for y in ys).backward()
    assert [module.a.grad.dtype, module.bs[0].grad.dtype, x.grad.dtype] == [
        torch.float32, torch.float32, torch.bfloat16,
    ]  # fmt: skip


def seen_by_a_forward_hook(module, stack):
    seen = []
    module.layers[0].register_forward_hook(lambda layer, args, y: seen.append((y, y.clone())))
    return seen


def watched_globally(module, stack):
    seen = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda layer, args, y: seen.append((y, y.clone())) if layer is module.layers[0] else None
    )
    stack.callback(handle.remove)
    return seen


@pytest.mark.parametrize("watch", [seen_by_a_forward_hook, watched_globally])
def test_a_hook_sees_what_its_layer_gives(x, watch):
    """Before the adapter adds to it, and no one writes to it afterwards."""
    module = Island()
    with contextlib.ExitStack() as stack:
        seen = watch(module, stack)
        ys = module(x)
        torch.testing.assert_close(list(ys), module.dense(x))
    y, then = seen[0]
    assert torch.equal(y, then)
    assert torch.equal(y, module.layers[0](x))


def test_compiled_it_is_one_graph(x):
    module = Island()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(list(compiled(x)), module.dense(x))


def test_under_checkpointing(x):
    module = Island()
    expected = torch.autograd.grad(sum(y.sum() for y in module.dense(x)), module.a)
    ys = checkpoint(module, x, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(sum(y.sum() for y in ys), module.a), expected)


def test_forward_mode_and_functorch_work(x):
    module = Island().requires_grad_(False)
    _, expected = torch.func.jvp(lambda x: module.dense(x)[0], (x,), (torch.ones_like(x),))
    _, actual = torch.func.jvp(lambda x: module(x)[0], (x,), (torch.ones_like(x),))
    torch.testing.assert_close(actual, expected)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.detach(), torch.ones_like(x))
        torch.testing.assert_close(forward_ad.unpack_dual(module(dual)[0]).tangent, expected)
    per_row = torch.func.vmap(lambda row: module(row)[0])(x.detach())
    torch.testing.assert_close(per_row, module.dense(x)[0])
