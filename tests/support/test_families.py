import pytest
import torch

from tests.support.families import TINY_FAMILIES, tiny_model


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_seed_fixes_the_weights_and_nothing_else(family):
    torch.manual_seed(5)
    first = tiny_model(family)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), drawn)
    again, other = tiny_model(family).state_dict(), tiny_model(family, seed=1).state_dict()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again[name]), name
        assert not torch.equal(tensor, other[name]), name


def test_overrides_are_the_family_s_own():
    assert len(tiny_model("gpt2", n_layer=3).transformer.h) == 3
    assert tiny_model("llama", attn_implementation="eager").config._attn_implementation == "eager"


def test_no_two_widths_of_a_llama_are_equal():
    layer = tiny_model("llama").model.layers[0]
    widths = [
        *layer.self_attn.q_proj.weight.shape,
        layer.self_attn.k_proj.out_features,
        layer.mlp.up_proj.out_features,
    ]
    assert len(set(widths)) == 4
