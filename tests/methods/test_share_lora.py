"""ShareLoRA: counts of its three forms, and gradients of what is shared."""

import pytest
import torch

from tests.methods.conftest import SIZES, close, planned, run, sites

FORMS = {
    "share_a": {"r_share_a": 3, "r_share_b": 0, "r_share_ab": 0},
    "share_b": {"r_share_a": 0, "r_share_b": 3, "r_share_ab": 0},
    "share_ab": {"r_share_a": 0, "r_share_b": 0, "r_share_ab": 3},
}


@pytest.mark.parametrize("model", SIZES)
@pytest.mark.parametrize("form", FORMS)
def test_count(form, model):
    every, layer = sites(model), sites(model)[:5]
    inputs = layer if form in ("share_a", "share_ab") else every
    outputs = layer if form in ("share_b", "share_ab") else every
    expected = 3 * (sum(i for i, _ in inputs) + sum(o for _, o in outputs))
    plan = planned("share_lora", model, **FORMS[form])
    assert plan.trainable == expected
    assert set(plan.shares) == {form}


def test_the_default_is_share_a():
    assert set(planned("share_lora").shares) == {"share_a"}


@pytest.mark.parametrize("form", FORMS)
def test_a_shared_gradient_is_the_sum_of_the_modules(form, adapted):
    """The same values in a LoRA that shares nothing: its gradients add up to ours."""
    ours = adapted("share_lora", lora_alpha=6, **FORMS[form])
    apart = adapted("lora", r=3, lora_alpha=6)
    for site in ours.plan.sites:
        for role, tensor in ours.tensors(site.path).items():
            apart.tensors(site.path)[role].data.copy_(tensor.data)
    close(run(ours.model), run(apart.model))

    sums: dict[str, torch.Tensor] = {}
    for term in ours.plan.terms:
        own = apart.tensors(term.site)
        for role, name in term.tensors.items():
            gradient = own[role].grad
            sums[name] = sums[name] + gradient if name in sums else gradient
    tensors = ours.model.bishare.tensors()
    assert set(sums) == set(tensors)
    assert len(sums) < 2 * len(ours.plan.sites)
    for name, expected in sums.items():
        close(tensors[name].grad, expected)
