"""Lily with weights in place of its router: an A for a stretch of layers, a few B for all, mixed by each module."""

import copy

import pytest
import torch
from peft import LilyConfig, get_peft_model

from bishare_dsl import compile_spec, plan_spec
from tests.methods.conftest import LAYERS, SIZES, close, near, planned, run, sites, spec

TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]


def test_the_equation(adapted):
    """``dW = s (sum_k m_k B_k) A_g``, with the A of the module's stretch of layers and the B of its kind."""
    ours = adapted("lily", r=3, count=4, lily_scale=0.5)
    tensors = ours.model.bishare.tensors()
    for site in ours.plan.sites:
        pool = f"lily.{site.kind}"
        a = tensors[f"{pool}.layer_times_groups_div_layers_{site.layer * 2 // LAYERS}.A"]
        several = tensors[f"{pool}.B"].reshape(4, 3, -1)
        weights = ours.tensors(site.path)["m_B"][0]
        b = sum(weights[k] * several[k].T for k in range(4))
        near(ours.delta(site.path), 0.5 * b @ a)


def test_peft_gives_the_same_logits_and_gradients_where_its_router_is_even(adapted):
    """A router of zeros weighs all B alike, whatever it reads."""
    ours = adapted("lily", r=3, count=2)
    config = LilyConfig(r=3, stride_A=2, num_B=2, target_modules=TARGETS)
    theirs = get_peft_model(copy.deepcopy(ours.base), config).double()

    def modules():
        for site in ours.plan.sites:
            module = theirs.base_model.model.get_submodule(site.path)
            pairs = (("A", module.lily_A["default"]), ("B", module.lily_B["default"]))
            yield module, ours.tensors(site.path), pairs

    with torch.no_grad():
        for module, tensors, pairs in modules():
            module.lily_router["default"].weight.zero_()
            tensors["m_B"].fill_(1 / 2)
            for role, linear in pairs:
                linear.weight.copy_(tensors[role])
    close(run(ours.model), run(theirs))
    for _, tensors, pairs in modules():
        for role, linear in pairs:
            close(tensors[role].grad, linear.weight.grad)


@pytest.mark.parametrize("model", SIZES)
@pytest.mark.parametrize(("groups", "count"), [(2, 2), (4, 3)])
def test_count(model, groups, count):
    layer = sites(model)[:5]
    factors = sum(groups * i + count * o for i, o in layer)
    plan = planned("lily", model, r=16, groups=groups, count=count)
    assert plan.trainable == 16 * factors + count * len(sites(model))


def test_the_count_of_peft_s_experiment():
    """PEFT's best on MetaMathQA has 9.49M parameters, with a router of 140 by 2 for each module."""
    text = 'spec mlp\nuse "lily"\ntarget gate_proj, up_proj, down_proj'
    trainable = plan_spec(text, "llama-3.2-3b", params={"r": 140}).trainable
    assert trainable == 140 * 67_584 + 84 * 2
    assert trainable + 84 * 2 * (140 - 1) == 9_485_280


def test_a_fresh_one_can_learn(llama):
    """The B start at zero, and get gradients that differ, as the weights do."""
    model = compile_spec(spec("lily", r=3), copy.deepcopy(llama))
    run(model)
    for name, tensor in model.bishare.tensors().items():
        if name.endswith(".B"):
            first, second = tensor.grad.chunk(2)
            assert not tensor.any()
            assert (first - second).norm() > 0.1 * first.norm() > 0
