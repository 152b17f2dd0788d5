"""`shared_core`, a matrix of each module between shared factors; and `masa`, several A that each module mixes."""

import pytest

from tests.methods.conftest import LAYERS, SIZES, near, planned, sites


def test_the_equation_of_a_core(adapted):
    """``dW = B R A``, with A of the input's width and B of the output's, and R of the module."""
    ours = adapted("shared_core", r=3, lora_alpha=6)
    tensors = ours.model.bishare.tensors()
    for site in ours.plan.sites:
        a, b = tensors[f"cores.in_{site.d_in}.A"], tensors[f"cores.out_{site.d_out}.B"]
        r = ours.tensors(site.path)["core"].T
        near(ours.delta(site.path), 2 * b.T @ r @ a)


@pytest.mark.parametrize("model", SIZES)
def test_count_of_cores(model):
    ins, outs = ({pair[side] for pair in sites(model)} for side in (0, 1))
    expected = 64 * (sum(ins) + sum(outs)) + len(sites(model)) * 64**2
    assert planned("shared_core", model).trainable == expected


def test_a_key_for_the_core(adapted):
    """A core for a layer's modules of one shape is one tensor, and the update that of the equation."""
    text = (
        "spec x\ntarget q_proj, v_proj, up_proj\n"
        "share s  A per in  B per out  core per layer  rank 3  via Core"
    )
    ours = adapted("x", text)
    tensors = ours.model.bishare.tensors()
    assert sum(name.endswith("core") for name in tensors) == LAYERS
    for site in ours.plan.sites:
        a, b = tensors[f"s.in_{site.d_in}.A"], tensors[f"s.out_{site.d_out}.B"]
        near(ours.delta(site.path), b.T @ tensors[f"s.layer_{site.layer}.core"].T @ a)


def test_the_equation_of_several_a(adapted):
    ours = adapted("masa", r=2, groups=2, count=3, lora_alpha=2)
    for site in ours.plan.sites:
        tensors = ours.tensors(site.path)
        a = sum(m * a for m, a in zip(tensors["m_A"][0], tensors["A"].chunk(3), strict=True))
        near(ours.delta(site.path), tensors["B"].T @ a)


@pytest.mark.parametrize("model", SIZES)
def test_count_of_several_a(model):
    expected = sum(8 * o + 3 for _, o in sites(model)) + 4 * 3 * 8 * sum(
        i for i, _ in sites(model)[:5]
    )
    assert planned("masa", model).trainable == expected
