"""MELoRA: the paper's equation, the rank of the update, and the price of it."""

import torch

from tests.methods.conftest import near, planned, sites


def test_the_paper_s_equation_and_rank(adapted):
    ours = adapted("melora", r=2, blocks=4, lora_alpha=6)
    for site in ours.plan.sites:
        tensors = ours.tensors(site.path)
        a, b = tensors["A"].chunk(4, 1), tensors["B"].chunk(4, 1)
        expected = torch.block_diag(*(3 * b[i].T @ a[i] for i in range(4)))
        found = ours.delta(site.path)
        near(found, expected)
        assert torch.linalg.matrix_rank(found) == 8 == ours.plan.rows(site.path)


def test_it_costs_as_much_as_a_lora_of_the_mini_rank():
    for blocks in (1, 2, 8):
        plan = planned("melora", r=2, blocks=blocks)
        assert plan.trainable == sum(2 * (i + o) for i, o in sites("llama-7b"))
        assert plan.rows(plan.sites[0].path) == 2 * blocks


def test_a_mini_lora_starts_by_its_own_width():
    plan = planned("melora", blocks=4)
    for site in plan.sites[:5]:
        term = plan.terms_of[site.path][0]
        assert plan.tensor[term.tensors["A"]].fan_in == site.d_in // 4
