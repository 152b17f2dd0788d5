"""`shared_core`, a matrix of each module between shared factors; `metatt`, a train of them; `masa`, several A."""

import copy

import pytest
import torch

from bishare_dsl import compile_spec, plan_spec
from tests.methods.conftest import LAYERS, SIZES, near, planned, run, sites, spec


def test_the_equation_of_a_core(adapted):
    """``dW = B R A``, with A of the input's width and B of the output's, and R of the module."""
    ours = adapted("shared_core", r=3, lora_alpha=6)
    tensors = ours.model.bishare.tensors()
    for site in ours.plan.sites:
        a, b = tensors[f"cores.in_{site.d_in}.A"], tensors[f"cores.out_{site.d_out}.B"]
        r = ours.tensors(site.path)["core"].T
        near(ours.delta(site.path), 2 * b.T @ r @ a)


@pytest.mark.parametrize("model", SIZES)
def test_count_of_cores(model):
    ins, outs = ({pair[side] for pair in sites(model)} for side in (0, 1))
    expected = 64 * (sum(ins) + sum(outs)) + len(sites(model)) * 64**2
    assert planned("shared_core", model).trainable == expected


def test_a_key_for_the_core(adapted):
    """A core for a layer's modules of one shape is one tensor, and the update that of the equation."""
    text = (
        "spec x\ntarget q_proj, v_proj, up_proj\n"
        "share s  A per in  B per out  core per layer  rank 3  via Core"
    )
    ours = adapted("x", text)
    tensors = ours.model.bishare.tensors()
    assert sum(name.endswith("core") for name in tensors) == LAYERS
    for site in ours.plan.sites:
        a, b = tensors[f"s.in_{site.d_in}.A"], tensors[f"s.out_{site.d_out}.B"]
        near(ours.delta(site.path), b.T @ tensors[f"s.layer_{site.layer}.core"].T @ a)


def test_the_equation_of_a_tensor_train(adapted):
    """``dW_(l,m)^T = s G_1 G_2[l] G_3[m] G_4``, with the paper's cores; inputs stand on the left there."""
    ours = adapted("metatt", r=3, metatt_scale=0.5)
    tensors = ours.model.bishare.tensors()
    for site in ours.plan.sites:
        first, last = tensors[f"tt.in_{site.d_in}.A"].T, tensors[f"tt.out_{site.d_out}.B"]
        layer, kind = tensors[f"tt.layer_{site.layer}.core"], tensors[f"tt.{site.kind}.core_2"]
        near(ours.delta(site.path).T, 0.5 * torch.linalg.multi_dot([first, layer, kind, last]))


@pytest.mark.parametrize("model", SIZES)
def test_count_of_a_tensor_train(model):
    """``r`` for each width, in and out, and ``(L + M) r^2``: 2 D r + (L + M) r^2 in the paper, of one width."""
    ins, outs = ({pair[side] for pair in sites(model)} for side in (0, 1))
    expected = 64 * (sum(ins) + sum(outs)) + (SIZES[model][0] + 5) * 64**2
    assert planned("metatt", model).trainable == expected


def test_a_fresh_train_learns_by_its_layers(llama):
    """The matrices of the layers alone are zero, so that they get the first gradient, and no other does."""
    model = compile_spec(spec("metatt", r=3), copy.deepcopy(llama))
    run(model)
    for name, tensor in model.bishare.tensors().items():
        of_a_layer = name.endswith(".core")
        assert tensor.any() != of_a_layer
        assert bool(tensor.grad.any()) == of_a_layer


def test_an_adapter_of_one_core_from_before_there_were_several_has_its_plan():
    """An option that came later is not in a plan that does not use it: the digest is that of 0.2.0."""
    digest = "25b2a8d9d14b1e03d8e37c927bb637844b8f48200020203725921db3d349e615"
    assert planned("shared_core").digest == digest


def test_a_core_of_each_adapter_of_a_library():
    text = (
        "spec x target q_proj, v_proj\n"
        "share tt  A per in  B per out  core per layer  core_2 per kind  core_3 per adapter  rank 2\n"
        "    via Core(cores = 3)"
    )
    plan = plan_spec(text, "llama-7b")
    [of_each] = set(plan.tensor) - plan.common
    assert of_each.endswith(".core_3")


def test_the_equation_of_several_a(adapted):
    ours = adapted("masa", r=2, groups=2, count=3, lora_alpha=2)
    for site in ours.plan.sites:
        tensors = ours.tensors(site.path)
        a = sum(m * a for m, a in zip(tensors["m_A"][0], tensors["A"].chunk(3), strict=True))
        near(ours.delta(site.path), tensors["B"].T @ a)


@pytest.mark.parametrize("model", SIZES)
def test_count_of_several_a(model):
    expected = sum(8 * o + 3 for _, o in sites(model)) + 4 * 3 * 8 * sum(
        i for i, _ in sites(model)[:5]
    )
    assert planned("masa", model).trainable == expected
