import pytest
import torch
from torch import nn

from bishare_dsl.rewrite.capture import capture_region
from bishare_dsl.rewrite.rewritten import GraphCode, set_code
from bishare_dsl.rewrite.structure import structure_key
from tests.support.families import tiny_model


def keys(model):
    return [structure_key(layer.self_attn) for layer in model.model.layers]


def test_layers_of_one_structure_share_a_key():
    assert len(set(keys(tiny_model("llama", num_hidden_layers=3)))) == 1


def test_layers_that_attend_differently_do_not():
    sliding, full, again = keys(tiny_model("gemma2", num_hidden_layers=3))
    assert sliding != full
    assert sliding == again


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "head_dim", 5),
        lambda m: setattr(m, "scaling", 0.5),
        lambda m: setattr(m, "is_causal", 1),  # equal to True, and not the same
        lambda m: setattr(m, "config", None),
        lambda m: setattr(m, "q_proj", nn.Identity()),
        lambda m: setattr(m, "extra", nn.Identity()),
        lambda m: setattr(m.q_proj, "out_features", 4),
        lambda m: m.register_parameter("sinks", nn.Parameter(torch.zeros(1))),
        lambda m: setattr(m, "layer_idx", None),
        lambda m: setattr(m, "__class__", type("Other", (type(m),), {})),
    ],
)
def test_whatever_a_forward_can_see_is_in_the_key(change):
    module = tiny_model("llama").model.layers[0].self_attn
    before = structure_key(module)
    change(module)
    assert structure_key(module) != before


def test_weights_adapters_and_graphs_are_not():
    module = tiny_model("llama").model.layers[0].self_attn
    before = structure_key(module)
    module.q_proj.weight.data.zero_()
    module.train()
    module.layer_idx = 7
    module.bishare = nn.Identity()
    set_code(module, GraphCode.of(capture_region(module, ["q_proj"])))
    assert structure_key(module) == before
