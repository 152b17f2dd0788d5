"""VB-LoRA: PEFT computes the same with the same tensors, and the counts are the paper's."""

import copy

import pytest
from peft import VBLoRAConfig, get_peft_model

from tests.methods.conftest import close, planned, run, sites

TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
R, VECTORS, LENGTH, TOP_K = 3, 11, 4, 2


def test_peft_gives_the_same_logits_and_gradients(adapted):
    ours = adapted("vb_lora", r=R, vectors=VECTORS, length=LENGTH, top_k=TOP_K)
    config = VBLoRAConfig(
        r=R, num_vectors=VECTORS, vector_length=LENGTH, topk=TOP_K, target_modules=TARGETS
    )
    theirs = get_peft_model(copy.deepcopy(ours.base), config).double()
    for site in ours.plan.sites:
        module, tensors = theirs.base_model.model.get_submodule(site.path), ours.tensors(site.path)
        module.vblora_vector_bank["default"].data.copy_(tensors["bank"].detach())
        # PEFT has A's logits as (r, tiles, vectors), and B's as (tiles, r, vectors).
        a, b = (tensors[role].detach().unflatten(0, (R, -1)) for role in ("L_A", "L_B"))
        module.vblora_logits_A["default"].data.copy_(a)
        module.vblora_logits_B["default"].data.copy_(b.transpose(0, 1))

    close(run(ours.model), run(theirs))
    for site in ours.plan.sites:
        module, tensors = theirs.base_model.model.get_submodule(site.path), ours.tensors(site.path)
        close(tensors["bank"].grad, module.vblora_vector_bank["default"].grad)
        close(tensors["L_A"].grad, module.vblora_logits_A["default"].grad.flatten(0, 1))
        b = module.vblora_logits_B["default"].grad.transpose(0, 1)
        close(tensors["L_B"].grad, b.flatten(0, 1))


@pytest.mark.parametrize(
    ("model", "count"),
    [("llama-7b", 2_488_320), ("llama-3-8b", 2_511_360), ("llama-1-13b", 3_882_240)],
)
def test_count(model, count):
    logits = sum(4 * (i + o) // 256 * 90 for i, o in sites(model))
    assert planned("vb_lora", model).trainable == count == logits + 90 * 256


def test_starts_small_and_random_as_the_paper_says():
    tensors = planned("vb_lora").tensors
    assert {(t.init, t.amount) for t in tensors if t.name.endswith("bank")} == {("uniform", 0.02)}
    assert {(t.init, t.amount) for t in tensors if ".L_" in t.name} == {("normal", 0.1)}
