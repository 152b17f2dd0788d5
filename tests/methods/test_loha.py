"""LoHa: PEFT computes the same with the same matrices; the count is that of a LoRA of twice the rank."""

import copy

import pytest
import torch
from peft import LoHaConfig, get_peft_model

from tests.methods.conftest import SIZES, close, planned, run, sites

TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]


def test_peft_gives_the_same_logits_and_gradients(adapted):
    ours = adapted("loha", r=3, lora_alpha=6)
    config = LoHaConfig(r=3, alpha=6, target_modules=TARGETS)
    theirs = get_peft_model(copy.deepcopy(ours.base), config).double()

    def pairs():
        for site in ours.plan.sites:
            module, mine = (
                theirs.base_model.model.get_submodule(site.path),
                ours.tensors(site.path),
            )
            # PEFT's a is our B, transposed, and its b our A.
            yield mine["A"], module.hada_w1_b["default"], False
            yield mine["B"], module.hada_w1_a["default"], True
            yield mine["A_2"], module.hada_w2_b["default"], False
            yield mine["B_2"], module.hada_w2_a["default"], True

    with torch.no_grad():
        for tensor, parameter, turned in pairs():
            parameter.copy_(tensor.T if turned else tensor)
    close(run(ours.model), run(theirs))
    for tensor, parameter, turned in pairs():
        close(tensor.grad, parameter.grad.T if turned else parameter.grad)


@pytest.mark.parametrize("model", SIZES)
def test_count(model):
    assert planned("loha", model).trainable == sum(8 * (i + o) for i, o in sites(model))
