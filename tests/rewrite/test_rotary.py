"""Rotary embedding in fewer passes: the same bits, the same gradients, and only where it is proved."""

import sys
import types

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from transformers.models.glm import modeling_glm
from transformers.models.llama import modeling_llama
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3

from bishare_dsl.rewrite.rotary import is_rotation, rotary

PLAIN = modeling_llama.apply_rotary_pos_emb


def inputs(dtype=torch.double, angles=1, heads=3, **settings):
    """Queries, keys and two tensors of no pattern at all in the angles' place."""
    torch.manual_seed(0)
    q = torch.randn(2, 5, heads, 4, dtype=dtype).transpose(1, 2).requires_grad_()
    k = torch.randn(2, 5, 2, 4, dtype=dtype).transpose(1, 2).requires_grad_()
    cos, sin = (torch.randn(angles, 5, 4, dtype=dtype, **settings) for _ in range(2))
    return q, k, cos, sin


def run(*tensors, module=modeling_llama):
    return rotary(module.__name__, "apply_rotary_pos_emb", *tensors)


def is_fused(results):
    return [type(y.grad_fn).__name__ for y in results] == ["_RotaryBackward"] * 2


@pytest.mark.parametrize("angles", [1, 2])
@pytest.mark.parametrize("dtype", [torch.double, torch.float32, torch.bfloat16, torch.float16])
def test_it_is_bit_identical(dtype, angles):
    tensors = inputs(dtype, angles)
    expected, fused = PLAIN(*tensors), run(*tensors)
    assert is_fused(fused)
    with torch.no_grad():
        kept = run(*tensors)
    for wanted, y, z in zip(expected, fused, kept, strict=True):
        assert torch.equal(wanted, y)
        assert torch.equal(wanted, z)
        assert wanted.stride() == y.stride() == z.stride()


def test_its_gradients():
    q, k, cos, sin = inputs()
    assert gradcheck(lambda q, k: run(q, k, cos, sin), (q, k))
    assert gradgradcheck(lambda q, k: run(q, k, cos, sin), (q, k))


@pytest.mark.parametrize("wanted", [0, 1])
def test_only_what_is_wanted_gets_a_gradient(wanted):
    tensors = inputs()
    tensors[1 - wanted].requires_grad_(False)
    expected = torch.autograd.grad(PLAIN(*tensors)[wanted].square().sum(), tensors[wanted])
    assert not run(*tensors)[1 - wanted].requires_grad
    actual = torch.autograd.grad(run(*tensors)[wanted].square().sum(), tensors[wanted])
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("module", [modeling_llama, modeling_qwen2, modeling_qwen3])
def test_the_models_functions_are_proved(module):
    assert is_rotation(module.apply_rotary_pos_emb)


def other_order(q, k, cos, sin):
    """Turns the other way round."""
    return PLAIN(q, k, cos, -sin)


def decides_by_values(q, k, cos, sin):
    return PLAIN(q, k, cos, sin) if cos.sum() > 0 else (q, k)


@pytest.mark.parametrize(
    "function",
    [modeling_glm.apply_rotary_pos_emb, other_order, decides_by_values, torch.relu, print],
    ids=["interleaved", "other order", "by values", "relu", "print"],
)
def test_others_are_not(function):
    assert not is_rotation(function)


def test_another_function_in_its_place_is_called(monkeypatch):
    tensors = inputs()
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda *_: ("mine", "too"))
    assert run(*tensors) == ("mine", "too")


def test_a_helper_in_the_place_of_its_own_is_called(monkeypatch):
    tensors = inputs()
    assert is_fused(run(*tensors))
    monkeypatch.setattr(modeling_llama, "rotate_half", lambda x: x)
    results = run(*tensors)
    assert not is_fused(results)
    q, _, cos, sin = tensors
    torch.testing.assert_close(results[0], q * (cos + sin).unsqueeze(1))


@pytest.mark.parametrize(
    "tensors",
    [
        inputs(requires_grad=True),
        (*inputs()[:2], *inputs(torch.float32)[2:]),
        (*(t[:1] for t in inputs()[:2]), *inputs(angles=2)[2:]),
    ],
    ids=["angles with gradients", "angles in another dtype", "one row stretched"],
)
def test_what_it_does_not_fit_goes_the_plain_way(tensors):
    results = run(*tensors)
    assert not is_fused(results)
    torch.testing.assert_close(results, PLAIN(*tensors))


def test_a_compiled_call_is_the_plain_one():
    tensors = inputs(torch.float32)
    compiled = torch.compile(run, fullgraph=True, backend="eager")
    assert not is_fused(compiled(*tensors))


def test_a_module_without_the_function_says_so():
    sys.modules["empty_of_rotary"] = types.ModuleType("empty_of_rotary")
    try:
        with pytest.raises(AttributeError, match="apply_rotary_pos_emb"):
            run(*inputs(), module=sys.modules["empty_of_rotary"])
    finally:
        del sys.modules["empty_of_rotary"]
