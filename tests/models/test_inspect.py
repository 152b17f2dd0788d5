"""Sites found in models of every supported family, and in models that are not plain any more."""

import pytest
import torch
from torch import nn

from bishare_dsl.diagnostics import ModelError
from bishare_dsl.models import Site, inspect_config, inspect_model
from bishare_dsl.models.inspect import linear_maps
from tests.support.families import TINY_FAMILIES, tiny_model

LLAMA_KINDS = {
    "self_attn.q_proj": (32, 40),
    "self_attn.k_proj": (32, 20),
    "self_attn.v_proj": (32, 20),
    "self_attn.o_proj": (40, 32),
    "mlp.gate_proj": (32, 48),
    "mlp.up_proj": (32, 48),
    "mlp.down_proj": (48, 32),
}
ATTENTION = {name: widths for name, widths in LLAMA_KINDS.items() if name.startswith("self_attn")}
# What each family's first block must give: path inside the block -> (d_in, d_out).
EXPECTED = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma2"), LLAMA_KINDS),
    "mixtral": ATTENTION
    | {
        name.replace("mlp", f"mlp.experts.{expert}"): widths
        for expert in range(4)
        for name, widths in LLAMA_KINDS.items()
        if name.startswith("mlp")
    },
    "phi3": {
        "self_attn.o_proj": (40, 32),
        "self_attn.qkv_proj": (32, 80),
        "mlp.gate_up_proj": (32, 96),
        "mlp.down_proj": (48, 32),
    },
    "gpt2": {
        "attn.c_attn": (32, 96),
        "attn.c_proj": (32, 32),
        "mlp.c_fc": (32, 48),
        "mlp.c_proj": (48, 32),
    },
    "opt": {
        **{f"self_attn.{kind}_proj": (32, 32) for kind in ("k", "v", "q", "out")},
        "fc1": (32, 48),
        "fc2": (48, 32),
    },
    "falcon": {
        "self_attention.query_key_value": (32, 48),
        "self_attention.dense": (32, 32),
        "mlp.dense_h_to_4h": (32, 48),
        "mlp.dense_4h_to_h": (48, 32),
    },
}
BLOCKS = {"gpt2": "transformer.h", "falcon": "transformer.h", "opt": "model.decoder.layers"}


def in_block(family, site):
    return site.path.removeprefix(f"{BLOCKS.get(family, 'model.layers')}.{site.layer}.")


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_sites_of_every_family_and_a_config_alone_gives_the_same(family):
    model = tiny_model(family)
    architecture = inspect_model(model)
    assert architecture.family == architecture.name == family
    assert architecture.layers == 2
    for layer in range(2):
        found = {
            in_block(family, site): (site.d_in, site.d_out)
            for site in architecture.sites
            if site.layer == layer
        }
        assert found == EXPECTED[family]
    assert architecture.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert inspect_config(model.config) == architecture


def test_parents_are_the_nearest_name_that_is_no_number():
    experts = nn.ModuleList([nn.ModuleDict({"up": nn.Linear(3, 5)})])
    block = nn.ModuleDict({"fc": nn.Linear(2, 3), "experts": experts})
    model = nn.ModuleDict({"h": nn.ModuleList([block])})
    assert inspect_model(model).sites == (
        Site(path="h.0.fc", layer=0, kind="fc", parent="h", d_in=2, d_out=3),
        Site(path="h.0.experts.0.up", layer=0, kind="up", parent="experts", d_in=3, d_out=5),
    )


class Packed(nn.Module):
    """A quantised linear as the libraries make them: eight values in an int32, and scales."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        packed = torch.zeros(linear.weight.numel() // 8, dtype=torch.int32)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.scales = nn.Parameter(torch.zeros(linear.out_features))
        self.bias = linear.bias


def test_a_quantised_weight_counts_as_what_it_stands_for():
    model = tiny_model("qwen2")  # with biases on q, k and v
    plain = inspect_model(model)
    for block in model.model.layers:
        for parent, kind in ((block.self_attn, "q_proj"), (block.mlp, "up_proj")):
            setattr(parent, kind, Packed(getattr(parent, kind)))
    assert inspect_model(model) == plain


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.Sequential(nn.ReLU()), nn.Embedding(3, 4)])
def test_a_model_without_linear_layers_in_it_is_refused(model):
    with pytest.raises(ModelError) as caught:
        inspect_model(model)
    assert [problem.code for problem in caught.value.problems] == ["BS514"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon", "mixtral"])
def test_what_zero_3_has_partitioned_is_seen_by_its_real_shape(family):
    """It leaves empty parameters that know their shape."""
    model = tiny_model(family)
    expected = inspect_model(model)
    for parameter in model.parameters():
        parameter.ds_shape, parameter.data = parameter.shape, torch.empty(0)
    assert inspect_model(model) == expected
    assert {weight.replacement() for weight in linear_maps(model).values()} == {None}
