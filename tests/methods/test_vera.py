"""VeRA: PEFT computes the same with the same tensors, and the counts are the paper's."""

import copy

import pytest
from peft import VeraConfig, get_peft_model

from tests.methods.conftest import close, planned, run, sites

TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]


def test_peft_gives_the_same_logits_and_gradients(adapted):
    ours = adapted("vera", r=6)
    theirs = get_peft_model(copy.deepcopy(ours.base), VeraConfig(r=6, target_modules=TARGETS))
    theirs.double()
    for site in ours.plan.sites:
        module, tensors = theirs.base_model.model.get_submodule(site.path), ours.tensors(site.path)
        module.vera_A["default"].copy_(tensors["A"].detach())
        module.vera_B["default"].copy_(tensors["B"].detach().t())
        module.vera_lambda_d["default"].data = tensors["gain_rank"].detach()[0].clone()
        module.vera_lambda_b["default"].data = tensors["gain_out"].detach()[0].clone()

    close(run(ours.model), run(theirs))
    for site in ours.plan.sites:
        module, tensors = theirs.base_model.model.get_submodule(site.path), ours.tensors(site.path)
        close(tensors["gain_rank"].grad[0], module.vera_lambda_d["default"].grad)
        close(tensors["gain_out"].grad[0], module.vera_lambda_b["default"].grad)
        assert tensors["A"].grad is None
        assert tensors["B"].grad is None


@pytest.mark.parametrize(
    ("model", "r", "count"),
    [("llama-7b", 64, 886_784), ("llama-3-8b", 64, 796_672), ("llama-1-13b", 128, 1_397_760)],
)
def test_count(model, r, count):
    plan = planned("vera", model, r=r)
    assert plan.trainable == count == sum(r + o for _, o in sites(model))
    # One frozen pair, as wide as the widest.
    assert plan.frozen == r * (max(i for i, _ in sites(model)) + max(o for _, o in sites(model)))


def test_starts_as_the_paper_says():
    starts = {t.name.rsplit(".", 1)[-1]: (t.init, t.amount) for t in planned("vera").tensors}
    assert starts["gain_rank"] == ("constant", 0.1)
    assert starts["gain_out"] == ("constant", 0)
