"""A forward that is set on a module after adaptation, as Liger and Unsloth do: applied, or refused."""

import functools
from types import MethodType

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import nn

from bishare_dsl import compile_spec
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.testing.models import tiny_model
from tests.support.checks import randomize

SPEC = "spec s\ntarget q_proj, v_proj, gate_proj, up_proj, down_proj\nshare a  A per layer, in  B per module  rank 2\n"
IDS = torch.arange(3, 19).view(2, 8)


@pytest.fixture
def model():
    model = compile_spec(SPEC, tiny_model())
    randomize(model)
    return model


def logits(model):
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


def swiglu(self, x):
    """A forward of another hand, such as that of a fused kernel."""
    return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


def by_dict(module, forward):  # Liger
    module.__dict__["forward"] = forward.__get__(module, type(module))


def by_attribute(module, forward):  # Unsloth
    module.forward = MethodType(forward, module)


@pytest.mark.parametrize("put", [by_dict, by_attribute])
def test_one_that_calls_the_layers_of_the_base_is_refused(model, put):
    expected = logits(model)
    with model.bishare.disable_adapter():
        base = logits(model)
    mlp = model.model.layers[1].mlp
    put(mlp, swiglu)
    with pytest.raises(AdapterError, match=r"BS407.*LlamaMLP"):
        logits(model)
    with model.bishare.disable_adapter():
        torch.testing.assert_close(logits(model), base)
    del mlp.forward
    assert torch.equal(logits(model), expected)
    # What the message asks for: patch first.
    put(mlp, swiglu)
    torch.testing.assert_close(logits(model.bishare.unload()), base)
    again = compile_spec(SPEC, model)
    randomize(again)
    torch.testing.assert_close(logits(again), expected, rtol=1e-4, atol=1e-4)


def test_one_of_a_class_leaves_the_adapter_in(model, monkeypatch):
    expected = logits(model)
    base = type(model.model.layers[0].mlp).bishare_base
    monkeypatch.setattr(base, "forward", lambda self, x: torch.zeros_like(x))
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("first", [False, True])
def test_one_over_a_hook_of_accelerate_is_refused(first):
    """`device_map="auto"` sets a hook on every module, which calls `_old_forward`."""
    base = tiny_model()
    if first:
        add_hook_to_module(base.model.layers[1].mlp, ModelHook())
    model = compile_spec(SPEC, base)
    randomize(model)
    mlp = model.model.layers[1].mlp
    if not first:
        add_hook_to_module(mlp, ModelHook())
    assert logits(model).isfinite().all()
    by_attribute(mlp, swiglu)
    with pytest.raises(AdapterError, match="BS407"):
        logits(model)


def test_wrappers_of_the_forward_are_taken(model):
    expected, mlp = logits(model), model.model.layers[0].mlp
    calls = []
    before = mlp.forward

    def counted(x):
        calls.append("closure")
        return before(x)

    mlp.forward = counted
    assert torch.equal(logits(model), expected)
    mlp.forward = functools.partial(lambda forward, x: forward(x), before)
    assert torch.equal(logits(model), expected)

    @functools.wraps(before)
    def wrapped(*args):
        calls.append("wraps")
        return before(*args)

    mlp.forward = wrapped
    assert torch.equal(logits(model), expected)
    del mlp.forward
    add_hook_to_module(mlp, ModelHook())
    assert torch.equal(logits(model), expected)
    remove_hook_from_module(mlp)
    assert torch.equal(logits(model), expected)
    assert calls == ["closure", "wraps"]
