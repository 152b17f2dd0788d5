"""TinyLoRA: PEFT computes the same with the same tensors; coefficients are all that trains."""

import copy

import pytest
import torch
from peft import TinyLoraConfig, get_peft_model

from bishare_dsl import compile_spec, plan_spec
from tests.methods.conftest import SIZES, close, near, planned, run, sites, spec

TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
PARAMS = {"r": 3, "count": 5}


def test_peft_gives_the_same_logits_and_gradients(adapted):
    ours = adapted("tiny_lora", **PARAMS)
    config = TinyLoraConfig(r=3, u=5, target_modules=TARGETS)
    theirs = get_peft_model(copy.deepcopy(ours.base), config).double()

    def coefficients():
        for site in ours.plan.sites:
            module = theirs.base_model.model.get_submodule(site.path)
            v = module.tinylora_v["default"][module._tinylora_v_key["default"]]
            yield module, ours.tensors(site.path), v

    with torch.no_grad():
        for module, tensors, v in coefficients():
            module.tinylora_A["default"] = tensors["A"].detach()
            module.tinylora_B["default"] = tensors["B"].detach().T
            module.tinylora_P["default"] = tensors["core"].detach().view(5, 3, 3).mT
            v.copy_(tensors["c"][0])
    close(run(ours.model), run(theirs))
    for _, tensors, v in coefficients():
        close(tensors["c"].grad[0], v.grad)
        assert not any(tensors[role].requires_grad for role in ("A", "B", "core"))


def test_its_factors_start_as_in_peft(llama):
    """Up to signs of the singular vectors, which `B A` does not know."""
    ours = compile_spec(spec("tiny_lora", **PARAMS), copy.deepcopy(llama)).bishare
    config = TinyLoraConfig(r=3, u=5, target_modules=TARGETS)
    theirs = get_peft_model(copy.deepcopy(llama), config)
    for term in ours.plan.terms:
        module = theirs.base_model.model.get_submodule(term.site)
        mine = {role: ours.tensors()[name] for role, name in term.tensors.items()}
        a, b = module.tinylora_A["default"], module.tinylora_B["default"]
        near(mine["B"].T @ mine["A"], b @ a)
        near(mine["A"] @ mine["A"].T, a @ a.T)
        assert not mine["c"].any()


def test_the_matrices_start_as_in_peft():
    """N(0, 1 / r)."""
    wide = plan_spec("tiny_lora", "llama-7b", params={"r": 64})
    cores = {(t.init, t.fan_in) for t in wide.tensors if t.name.endswith(".core")}
    assert cores == {("kaiming_normal", 2 * 64)}


@pytest.mark.parametrize("model", SIZES)
def test_count(model):
    assert planned("tiny_lora", model).trainable == 64 * len(sites(model))


def test_the_paper_s_13_parameters():
    text = (
        "spec x target q_proj, v_proj\n"
        "share tiny  per module  c per model  rank 2  via Core(count = 13)\n"
        "    init A svd, B svd  freeze A, B, core"
    )
    assert plan_spec(text, "llama-7b").trainable == 13
