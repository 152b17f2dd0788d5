"""MiSS: PEFT computes the same with the same matrices, at ranks that divide a width and that do not."""

import copy

import pytest
import torch
from peft import MissConfig, get_peft_model

from tests.methods.conftest import SIZES, close, planned, run, sites

TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize("r", [4, 5])
def test_peft_gives_the_same_logits_and_gradients(adapted, r):
    ours = adapted("miss", r=r)
    theirs = get_peft_model(copy.deepcopy(ours.base), MissConfig(r=r, target_modules=TARGETS))
    theirs = theirs.double()
    pairs = [
        (
            ours.tensors(site.path)["B"],
            theirs.base_model.model.get_submodule(site.path).miss_block["default"],
        )
        for site in ours.plan.sites
    ]
    with torch.no_grad():
        for b, block in pairs:
            block.copy_(b)
    close(run(ours.model), run(theirs))
    for b, block in pairs:
        close(b.grad, block.grad)


@pytest.mark.parametrize("model", SIZES)
def test_count(model):
    assert planned("miss", model).trainable == 64 * sum(o for _, o in sites(model))
