"""MultiLoRA: parallel LoRAs, each with a learned scaling of its output."""

import torch

from tests.methods.conftest import near, planned, sites

SHARES = ("first", "second", "third")


def test_the_paper_s_equation(adapted):
    ours = adapted("multilora", r=2, lora_alpha=6)
    for site in ours.plan.sites:
        expected = torch.zeros(site.d_out, site.d_in).double()
        for share in SHARES:
            tensors = ours.tensors(site.path, share)
            expected += 3 * tensors["gain_out"].T * (tensors["B"].T @ tensors["A"])
        near(ours.delta(site.path), expected)


def test_count():
    plan = planned("multilora", r=4)
    assert plan.trainable == sum(3 * (4 * (i + o) + o) for i, o in sites("llama-7b"))
    assert plan.rows(plan.sites[0].path) == 12


def test_scalings_start_at_zero_and_b_does_not():
    plan = planned("multilora")
    starts = {name.rsplit(".", 1)[-1]: tensor.init for name, tensor in plan.tensor.items()}
    assert starts == {"A": "kaiming_uniform", "B": "kaiming_uniform", "gain_out": "constant"}
    assert {t.amount for t in plan.tensors if t.init == "constant"} == {0}
