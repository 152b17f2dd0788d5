import torch

from bishare_dsl.convert.effective import delta, effective_factors


def test_terms_are_stacked_and_scales_folded_into_b(made):
    plan, tensors = made("share x per module rank 2 scale 2 share y per module rank 3 scale 0.5")
    site = plan.sites[0]
    a, b = effective_factors(plan, tensors, site)
    x, y = "x.layers.0.self_attn.q_proj", "y.layers.0.self_attn.q_proj"
    assert torch.equal(a, torch.cat([tensors[f"{x}.A"], tensors[f"{y}.A"]]))
    assert torch.equal(b, torch.cat([2 * tensors[f"{x}.B"], 0.5 * tensors[f"{y}.B"]]))
    assert a.shape == (plan.rows(site.path), site.d_in)
    assert b.shape == (plan.rows(site.path), site.d_out)


def test_delta_is_the_sum_of_the_terms(made):
    plan, tensors = made(
        "share x per layer rank 2 scale 3 via SS(slice = leading) share y per module rank 1"
    )
    site = plan.sites[0]  # a q_proj, 32 -> 40, narrower than its layer's widest
    a, b = (tensors[f"x.layer_0.{factor}"] for factor in "AB")
    own_a, own_b = (tensors[f"y.layers.0.self_attn.q_proj.{factor}"] for factor in "AB")
    want = 3 * b[:, : site.d_out].t() @ a[:, : site.d_in] + own_b.t() @ own_a
    torch.testing.assert_close(delta(plan, tensors, site), want)


def test_low_precision_tensors_are_multiplied_in_float32(made):
    plan, tensors = made("share x per module rank 2")
    low = {name: t.bfloat16() for name, t in tensors.items()}
    exact = {name: t.float() for name, t in low.items()}
    found = delta(plan, low, plan.sites[0])
    assert found.dtype == torch.float32
    assert torch.equal(found, delta(plan, exact, plan.sites[0]))
