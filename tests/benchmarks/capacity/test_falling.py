"""What the trials of seeds that fall are made of."""

import math

import falling
import pytest


def test_a_peak_is_the_top_of_a_parabola_in_the_rate_s_logarithm():
    def bits(rate):
        return 1 - (math.log(rate) - math.log(0.02)) ** 2

    rates = (4e-3, 1e-2, 2.5e-2, 6.25e-2)
    assert falling._peak({rate: bits(rate) for rate in rates}) == pytest.approx(0.02)
    assert falling._peak({1e-2: 1.0, 2.5e-2: 2.0}) == 2.5e-2


def test_kernels_are_apart_from_the_factors_of_their_share():
    name = "model.layers.0.self_attn.bishare_tensors.default.inter__"
    assert falling.part_of(name + "layers__0__self_attn__q_proj__K_A") == "inter kernels"
    assert falling.part_of(name + "A") == "inter"


def test_trials_are_tried_at_the_best_rate_too():
    tried = {(method, rate) for _, method, _, rate, _ in falling.TRIALS}
    assert tried >= set(falling.BEST.items())
    assert {recipe for *_, recipe in falling.TRIALS} == falling.RECIPES.keys()
