"""GraLoRA: PEFT computes the same with the same matrices; the count is that of a LoRA."""

import copy

import pytest
import torch
from peft import GraloraConfig, get_peft_model

from tests.methods.conftest import SIZES, close, planned, run, sites

TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]


def test_peft_gives_the_same_logits_and_gradients(adapted):
    ours = adapted("gralora", r=6, blocks=2, lora_alpha=12)
    config = GraloraConfig(r=6, gralora_k=2, alpha=12, hybrid_r=0, target_modules=TARGETS)
    theirs = get_peft_model(copy.deepcopy(ours.base), config).double()

    def pairs():
        for site in ours.plan.sites:
            module = theirs.base_model.model.get_submodule(site.path)
            mine = ours.tensors(site.path)
            yield mine["A"], module.gralora_A["default"], (0, 2, 1)  # (part, width, r)
            yield mine["B"], module.gralora_B["default"], (0, 1, 2)  # (part, r, width)

    def in_parts(tensor, order):
        return torch.stack(tensor.chunk(2, 1)).permute(order)

    with torch.no_grad():
        for tensor, parameter, order in pairs():
            parameter.copy_(in_parts(tensor, order))
    close(run(ours.model), run(theirs))
    for tensor, parameter, order in pairs():
        close(in_parts(tensor.grad, order), parameter.grad)


@pytest.mark.parametrize("model", SIZES)
def test_count(model):
    assert planned("gralora", model).trainable == sum(8 * (i + o) for i, o in sites(model))
