"""LoRA and rsLoRA: PEFT computes the same with the same tensors."""

import copy

import pytest
from peft import LoraConfig, get_peft_model

from tests.methods.conftest import close, planned, run, sites

TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize(
    ("name", "rslora", "scale"), [("lora", False, 10 / 3), ("rslora", True, 10 / 3**0.5)]
)
def test_peft_gives_the_same_logits_and_gradients(name, rslora, scale, adapted):
    ours = adapted(name, r=3, lora_alpha=10)
    assert all(term.scale == pytest.approx(scale) for term in ours.plan.terms)
    config = LoraConfig(r=3, lora_alpha=10, use_rslora=rslora, target_modules=TARGETS)
    theirs = get_peft_model(copy.deepcopy(ours.base), config).double()
    for site in ours.plan.sites:
        module, tensors = theirs.base_model.model.get_submodule(site.path), ours.tensors(site.path)
        module.lora_A["default"].weight.data = tensors["A"].detach().clone()
        module.lora_B["default"].weight.data = tensors["B"].detach().t().clone()

    close(run(ours.model), run(theirs))
    for site in ours.plan.sites:
        module, tensors = theirs.base_model.model.get_submodule(site.path), ours.tensors(site.path)
        close(tensors["A"].grad, module.lora_A["default"].weight.grad)
        close(tensors["B"].grad, module.lora_B["default"].weight.grad.t())


@pytest.mark.parametrize("name", ["lora", "rslora"])
@pytest.mark.parametrize("model", ["llama-7b", "llama-3-8b", "llama-1-13b"])
def test_count(name, model):
    assert planned(name, model, r=8).trainable == sum(8 * (i + o) for i, o in sites(model))


def test_rslora_is_lora_but_for_the_scale():
    lora, rslora = planned("lora", r=16), planned("rslora", r=16)
    assert (lora.tensors, lora.pools) == (rslora.tensors, rslora.pools)
    assert {term.scale for term in lora.terms} == {1}
    assert {term.scale for term in rslora.terms} == {4}
