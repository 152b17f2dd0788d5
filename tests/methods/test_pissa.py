"""PiSSA and LoRA-XS: starts that are read from the weights, beside PEFT's and dense matrices."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from bishare_dsl import compile_spec
from tests.methods.conftest import SIZES, planned, run, sites, spec

TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]


def same(found, expected):
    """Equal up to the rounding of float32, in which either decomposes the weights."""
    reach = 2e-5 * float(expected.detach().abs().max())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=reach)


@pytest.mark.parametrize("alpha", [3, 12])
def test_pissa_starts_and_learns_as_in_peft(alpha, llama):
    base = copy.deepcopy(llama).float()
    ours = compile_spec(spec("pissa", r=3, lora_alpha=alpha), copy.deepcopy(base))
    config = LoraConfig(r=3, lora_alpha=alpha, target_modules=TARGETS, init_lora_weights="pissa")
    theirs = get_peft_model(copy.deepcopy(base), config)
    tensors, scale, trained = ours.bishare.tensors(), alpha / 3, []
    for site in ours.bishare.plan.sites:
        module = theirs.base_model.model.get_submodule(site.path)
        learned, subtracted = ours.bishare.plan.terms_of[site.path]
        a, b = (tensors[learned.tensors[role]] for role in "AB")
        start_a, start_b = (tensors[subtracted.tensors[role]] for role in "AB")
        their_a, their_b = (getattr(module, n)["default"].weight for n in ("lora_A", "lora_B"))
        # Of either the directions may point the other way.
        same(scale * b.T @ a, scale * their_b @ their_a)
        weight = base.get_submodule(site.path).weight
        same(weight + subtracted.scale * start_b.T @ start_a, module.base_layer.weight)
        trained += [(a, b, their_a, their_b)]
    same(run(ours), run(theirs))
    with torch.no_grad():
        for a, b, their_a, their_b in trained:
            sign = (a * their_a).sum(1).sign()
            same(a.grad * sign[:, None], their_a.grad)
            same(b.grad.T * sign, their_b.grad)
            for mine, other in ((a, their_a), (b, their_b.T)):
                mine -= 0.1 * mine.grad
                other -= 0.1 * mine.grad * sign[:, None]
    same(run(ours), run(theirs))


def test_the_equation_of_lora_xs(adapted):
    """``dW = scale * U S R V^T``, and U, S, V are of the weight."""
    ours = adapted("lora_xs", r=3, lora_alpha=6)
    fresh = compile_spec(spec("lora_xs", r=3), copy.deepcopy(ours.base)).bishare
    for site in ours.plan.sites:
        weight = ours.base.get_submodule(site.path).weight
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        start = {
            role: fresh.tensors()[n] for role, n in ours.plan.terms_of[site.path][0].tensors.items()
        }
        same(start["B"].T @ start["A"], ((u * s)[:, :3] @ vh[:3]).float())
        same(start["A"] @ start["A"].T, torch.eye(3))
        assert not start["core"].any()
        tensors = ours.tensors(site.path)
        expected = 2 * tensors["B"].T @ tensors["core"].T @ tensors["A"]
        torch.testing.assert_close(ours.delta(site.path).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", SIZES)
def test_counts(model):
    both = sum(i + o for i, o in sites(model))
    pissa, xs = planned("pissa", model), planned("lora_xs", model)
    assert (pissa.trainable, pissa.frozen) == (8 * both, 8 * both)
    assert (xs.trainable, xs.frozen) == (16**2 * len(sites(model)), 16 * both)


def test_the_paper_counts_of_lora_xs():
    """``r^2`` for each module, whatever its widths: Section 3 of the paper."""
    assert planned("lora_xs", "llama-3-8b", r=64).trainable == 160 * 64**2
