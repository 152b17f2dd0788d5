"""BD-LoRA: PEFT computes the same with the same matrices, and what a GPU adds needs nothing of another's."""

import copy

import pytest
import torch
from peft import BdLoraConfig, LoraConfig, get_peft_model

from tests.methods.conftest import SIZES, close, near, planned, run, sites

TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
BLOCKS = 2
PARAMS = {"r": 6, "blocks": BLOCKS, "lora_alpha": 12}


def test_peft_gives_the_same_logits_and_gradients(adapted):
    ours = adapted("bd_lora", **PARAMS)
    cut = BdLoraConfig(
        target_modules_bd_a=["down_proj"], target_modules_bd_b=TARGETS[:4], nblocks=BLOCKS
    )
    config = LoraConfig(r=6, lora_alpha=12, target_modules=TARGETS, use_bdlora=cut)
    theirs = get_peft_model(copy.deepcopy(ours.base), config).double()

    def of_peft(term, role, tensor):
        """A block-diagonal A is its blocks one below the other there; of B both have these in rows."""
        if term.share == "rows" and role == "A":
            return torch.cat(tensor.chunk(BLOCKS, 1))
        return tensor if role == "A" else tensor.T

    def pairs():
        tensors = ours.model.bishare.tensors()
        for term in ours.plan.terms:
            module = theirs.base_model.model.get_submodule(term.site)
            for role, linear in (("A", module.lora_A["default"]), ("B", module.lora_B["default"])):
                yield term, role, tensors[term.tensors[role]], linear.weight

    with torch.no_grad():
        for term, role, tensor, weight in pairs():
            weight.copy_(of_peft(term, role, tensor))
    close(run(ours.model), run(theirs))
    for term, role, tensor, weight in pairs():
        close(of_peft(term, role, tensor.grad), weight.grad)


def test_a_part_of_a_layer_needs_only_its_part_of_the_factors(adapted):
    """Outputs that one GPU has read its rows of A and its block of B; inputs, its block of A and columns of B."""
    ours = adapted("bd_lora", **PARAMS)
    for site in ours.plan.sites:
        tensors, delta = ours.tensors(site.path), ours.delta(site.path)
        cut = 1 if site.kind == "down_proj" else 0
        a = tensors["A"].chunk(BLOCKS, cut)
        b = tensors["B"].chunk(BLOCKS, 1 - cut)
        for i, part in enumerate(delta.chunk(BLOCKS, cut)):
            near(part, 2 * b[i].T @ a[i])


@pytest.mark.parametrize("model", SIZES)
def test_count(model):
    """A factor that is cut has the parameters of a rank ``r / blocks``."""
    of_layer = sites(model)[:5]
    whole = sum(i for i, _ in of_layer[:4]) + of_layer[4][1]
    cut = sum(o for _, o in of_layer[:4]) + of_layer[4][0]
    assert planned("bd_lora", model).trainable == SIZES[model][0] * (8 * whole + 4 * cut)


def test_a_factor_starts_by_its_own_fan_in():
    plan = planned("bd_lora", blocks=4)
    fan_in = {
        t.name.replace("layers.3.", ""): t.fan_in for t in plan.tensors if ".layers.3." in t.name
    }
    assert fan_in["columns.self_attn.q_proj.A"] == 4096
    assert fan_in["columns.self_attn.q_proj.B"] == 2
    assert fan_in["rows.mlp.down_proj.A"] == 11_008 // 4
    assert fan_in["rows.mlp.down_proj.B"] == 8


def test_an_adapter_of_melora_from_before_has_its_plan():
    digest = "851a8d1bcf154dbacfe25bb8ea427da3f412d91667d971f3e31c8d54e3757c40"
    assert planned("melora").digest == digest
