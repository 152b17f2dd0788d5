"""What is said of how a weight is kept, against what the model computes with it."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import AutoConfig, AutoModelForCausalLM

from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.models.inspect import inspect_model, linear_maps
from bishare_dsl.models.weights import Weight
from tests.support.families import tiny_model

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}


def gpt_oss_gate(gate, up):
    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
    return (up + 1) * gate * torch.sigmoid(1.702 * gate)


# Not granitemoe, which tests/rewrite/test_experts.py has: before transformers 5.13 its experts are no sites.
GATES = {
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "olmoe"), lambda g, u: silu(g) * u),
    "gpt_oss": gpt_oss_gate,
}


def mixture(family, **more):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, **more})
    model = AutoModelForCausalLM.from_config(config, experts_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


@pytest.mark.parametrize("family", GATES)
@torch.no_grad()
def test_an_experts_weights_are_those_it_computes_with_in_order_and_are_all_there_are(family):
    model = mixture(family)
    maps = linear_maps(model)
    path = next(weight.owner for weight in maps.values() if weight.expert is not None)
    experts = model.get_submodule(path)
    x = torch.randn(5, 32)
    for expert in range(4):
        only = torch.full((5, 1), expert)
        y = experts(x, only, torch.ones(5, 1))
        gate, up, down = (
            maps[f"{path}.{expert}.{n}_proj"].matrix() for n in ("gate", "up", "down")
        )
        bias = {
            name: kept[expert]
            if (kept := getattr(experts, f"{name}_bias", None)) is not None
            else 0
            for name in ("gate_up_proj", "down_proj")
        }
        both = bias["gate_up_proj"]
        gate_bias, up_bias = (both[::2], both[1::2]) if isinstance(both, Tensor) else (0, 0)
        inner = GATES[family](x @ gate.T + gate_bias, x @ up.T + up_bias)
        torch.testing.assert_close(y, inner @ down.T + bias["down_proj"])
    found = [weight for weight in maps.values() if weight.owner == path]
    names = ("0.gate_proj", "0.up_proj", "0.down_proj", "1.gate_proj")
    assert [weight.path for weight in found[:4]] == [f"{path}.{name}" for name in names]
    assert {weight.expert for weight in found} == set(range(4))
    for name in ("gate_up_proj", "down_proj"):
        kept = getattr(experts, name)
        marked = torch.zeros_like(kept)
        for weight in found:
            if weight.parameter == name:
                assert weight.part(kept).shape == (weight.d_out, weight.d_in)
                weight.part(marked).add_(1)
        assert (marked == 1).all()


def test_experts_are_sites():
    sites = [site for site in inspect_model(mixture("qwen3_moe")).sites if site.layer == 1]
    assert [site.expert for site in sites] == [None] * 4 + [e for e in range(4) for _ in range(3)]
    last = sites[-1]
    assert last.path == "model.layers.1.mlp.experts.3.down_proj"
    assert (last.kind, last.parent, last.d_in, last.d_out) == ("down_proj", "experts", 24, 32)


def test_writing_into_a_matrix_changes_the_model():
    for model, path in (
        (mixture("gpt_oss"), "model.layers.0.mlp.experts.2.up_proj"),
        (tiny_model("gpt2"), "transformer.h.0.attn.c_attn"),
        (tiny_model("llama"), "model.layers.0.mlp.up_proj"),
    ):
        before = {name: p.clone() for name, p in model.named_parameters()}
        weight = linear_maps(model)[path]
        weight.matrix().fill_(3.0)
        changed = {n: p for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        assert list(changed) == [f"{weight.owner}.{weight.parameter}"]
        assert (next(iter(changed.values())) == 3.0).sum() == weight.d_in * weight.d_out


class Quantised(nn.Module):
    """A layer that keeps integers, and tells what they stand for."""

    def __init__(self, told):
        super().__init__()
        self.in_features, self.out_features = 3, 2
        self.weight = nn.Parameter(torch.zeros(6, 1, dtype=torch.uint8), requires_grad=False)
        self.told = told

    def dequantize(self):
        return self.told


def test_what_stands_for_a_weight():
    dense = Weight("a", "a", nn.Linear(3, 2), 3, 2)
    assert dense.replacement() is None
    assert Weight("a", "a", nn.Linear(3, 2), 2, 3).replacement() == "Linear, float32"
    told = torch.randn(2, 3)
    quantised = Weight("a", "a", Quantised(told), 3, 2)
    assert quantised.replacement() == "Quantised, uint8"
    assert torch.equal(quantised.dense(), told)
    with pytest.raises(AdapterError, match="BS623"):
        Weight("a", "a", Quantised(told.T), 3, 2).dense()
    assert Weight("a", "a", nn.Module(), 3, 2).replacement() == "Module"


def test_looking_at_a_quantised_layer_leaves_it_where_it_is():
    """What bitsandbytes keeps on a weight is moved in place with any copy of it."""

    class Packed(nn.Parameter):
        def to(self, *_, **__):
            raise AssertionError("it is moved")

    class Small(nn.Linear):
        def forward(self, x):
            raise NotImplementedError

    model = tiny_model("llama")
    layer = Small(8, 8, bias=False)
    layer.weight = Packed(torch.zeros(8, 8), requires_grad=False)
    model.model.layers[0].self_attn.q_proj = layer
    assert "model.layers.0.self_attn.q_proj" in linear_maps(model)


class RoundsInEvaluation(nn.Linear):
    """As a layer of bitsandbytes, which packs its four bits anew in evaluation, and rounds them."""

    def forward(self, x):
        y = super().forward(x)
        return y if self.training else y.round()


@pytest.mark.parametrize("training", [True, False])
def test_a_layers_weight_is_what_it_gives_in_training(training):
    """Whatever its mode is, and that stays as it was."""
    layer = RoundsInEvaluation(3, 4).train(training)
    expected = layer.weight.detach().clone()
    (found, *_) = Weight("fc", "fc", layer, 3, 4)._probe_with_identity()
    torch.testing.assert_close(found, expected)
    assert layer.training is training
