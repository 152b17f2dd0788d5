"""RaSA: part of the rank pooled across layers, with learned diagonals."""

import pytest
import torch

from tests.methods.conftest import LAYERS, SIZES, near, planned, sites


def test_the_paper_s_equation(adapted):
    """``[B_i, B_S] D_i [A_i; A_S]``, of rank r - k + L k."""
    ours = adapted("rasa", r=4, k=1)
    for site in ours.plan.sites:
        own, pool = ours.tensors(site.path, "own"), ours.tensors(site.path, "pool")
        a, b = torch.cat([own["A"], pool["A"]]), torch.cat([own["B"], pool["B"]])
        d = torch.cat([own["gain_rank"], pool["gain_rank"]], 1)
        near(ours.delta(site.path), b.T @ torch.diag(d[0]) @ a)
        assert ours.plan.rows(site.path) == 4 - 1 + LAYERS


@pytest.mark.parametrize("model", SIZES)
@pytest.mark.parametrize("k", [1, 2])
def test_count(model, k):
    """As a LoRA of rank r, and the diagonals: k rows of each layer make the pool."""
    layers, r = SIZES[model][0], 8
    lora = sum(r * (i + o) for i, o in sites(model))
    diagonals = len(sites(model)) * (r - k + layers * k)
    plan = planned("rasa", model, r=r, k=k)
    assert plan.trainable == lora + diagonals


def test_the_diagonals_start_as_the_scale():
    plan = planned("rasa", r=8, k=1, rasa_alpha=16)
    amounts = {t.share: t.amount for t in plan.tensors if t.name.endswith("gain_rank")}
    assert amounts == {"own": 0.5 * 16 / 7, "pool": 0.5 * 16 / 32}
    assert {term.scale for term in plan.terms} == {1}
