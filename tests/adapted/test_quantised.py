"""Bases that bitsandbytes, torchao and GPTQ keep in few bits: adapted, trained, kept, exported, made dense."""

import copy
import json
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

from bishare_dsl import compile_spec, load_adapter, parse_spec
from bishare_dsl.cli.main import main
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.language import read_file
from bishare_dsl.models import inspect_model
from bishare_dsl.models.inspect import linear_maps
from bishare_dsl.resources import shipped_specs
from bishare_dsl.testing.models import tiny_model
from bishare_dsl.transforms.registry import transform_names
from tests.methods.test_every_method import TINY
from tests.support.checks import randomize
from tests.support.quantised import quantise

pytestmark = pytest.mark.filterwarnings("ignore")
SPEC = """
spec s
target attention_inputs, mlp_gates, mlp_ups, mlp_downs
share block  A per layer, in  B per module  rank 2
"""
SCALED = SPEC + "magnitude per module\n"
IDS = torch.arange(3, 19).view(2, 8)


def dense():
    # bitsandbytes takes no narrower layers on a CPU, and GPTQ no others than multiples of 32.
    return tiny_model("llama", hidden_size=128, head_dim=32, intermediate_size=256)


def replaced(make):
    return quantise(dense(), lambda path: path != "lm_head", make).requires_grad_(False)


def bitsandbytes_4():
    bnb = pytest.importorskip("bitsandbytes")

    def make(linear):
        how = {"compute_dtype": torch.float32, "quant_type": "nf4"}
        small = bnb.nn.Linear4bit(linear.in_features, linear.out_features, bias=False, **how)
        weight = linear.weight.detach()
        small.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
        return small.to("cpu")

    return replaced(make)


def bitsandbytes_8():
    bnb = pytest.importorskip("bitsandbytes")

    def make(linear):
        small = bnb.nn.Linear8bitLt(
            linear.in_features, linear.out_features, bias=False, has_fp16_weights=False
        )
        small.weight = bnb.nn.Int8Params(
            linear.weight.detach(), requires_grad=False, has_fp16_weights=False
        )
        return small.to("cpu")

    return replaced(make)


def torchao(config):
    quantization = pytest.importorskip("torchao.quantization")
    model = dense()
    quantization.quantize_(
        model,
        config(quantization),
        filter_fn=lambda module, path: isinstance(module, nn.Linear) and path != "lm_head",
    )
    return model.requires_grad_(False)


def int_8(q):
    return q.Int8WeightOnlyConfig()


def int_4(q):
    # `Int4WeightOnlyConfig` needs kernels that are for GPUs.
    return q.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=q.granularity.PerGroup(32))


def fp_8(q):
    return q.Float8WeightOnlyConfig()


def torchao_8():
    return torchao(int_8)


def torchao_4():
    return torchao(int_4)


def torchao_fp8():
    return torchao(fp_8)


def gptq_4():
    gptq = pytest.importorskip("gptqmodel.nn_modules.qlinear.torch")

    def make(linear):
        d_in, d_out = linear.in_features, linear.out_features
        small = gptq.TorchLinear(
            bits=4, group_size=32, sym=True, desc_act=False, in_features=d_in, out_features=d_out
        )
        groups = linear.weight.detach().view(d_out, -1, 32)
        scales = groups.abs().amax(2) / 7
        zeros = torch.full_like(scales, 8)
        group = torch.arange(d_in) // 32
        small.pack(linear, scales, zeros, group)
        small.post_init()
        return small

    return replaced(make)


KINDS = (bitsandbytes_4, bitsandbytes_8, torchao_8, torchao_4, torchao_fp8, gptq_4)
# How far the layers compute from products with their weights made dense: eight bits of
# bitsandbytes round the input too, and GPTQ computes in half precision.
ROUNDING = {bitsandbytes_8: 0.1, gptq_4: 0.05}
# In eval mode bitsandbytes packs four bits anew for a CPU, and eight bits depend on what came before.
REPEATED = {bitsandbytes_4: 0.05, bitsandbytes_8: 0.1}


def torchao_config(config):
    return TorchAoConfig(config(pytest.importorskip("torchao.quantization")))


# What transformers takes to load a dense checkpoint so, and to save it so.
CONFIGS = {
    bitsandbytes_4: lambda: BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    ),
    bitsandbytes_8: lambda: BitsAndBytesConfig(load_in_8bit=True),
    torchao_8: lambda: torchao_config(int_8),
    torchao_4: lambda: torchao_config(int_4),
    torchao_fp8: lambda: torchao_config(fp_8),
}


def checkpoint(kind, folder):
    """Write a quantised checkpoint."""
    if make := CONFIGS.get(kind):
        dense().save_pretrained(folder / "dense")
        model = load(folder / "dense", quantization_config=make())
        model.save_pretrained(folder / "base")
    else:  # GPTQ would want data to calibrate on.
        model = kind()
        model.config.save_pretrained(folder / "base")
        said = folder / "base" / "config.json"
        config = json.loads(said.read_text())
        how = {"bits": 4, "group_size": 32, "sym": True, "desc_act": False}
        config["quantization_config"] = {"quant_method": "gptq", **how}
        said.write_text(json.dumps(config))
        tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(tensors, folder / "base" / "model.safetensors", metadata={"format": "pt"})
    return folder / "base"


def load(folder, **loading):
    return AutoModelForCausalLM.from_pretrained(folder, **loading)


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def near(found, wanted, part):
    assert (found - wanted).norm() <= part * wanted.norm()


def oracle(quantised):
    """The same model with dense weights."""
    model = dense()
    for path, weight in linear_maps(quantised).items():
        if path != "lm_head" and weight.replacement() is not None:
            model.get_submodule(path).weight.data = weight.dense().float()
    return model


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request):
    request.param()  # Whoever lacks the package is told so here.
    return request.param


@pytest.mark.parametrize("spec", [SPEC, SCALED], ids=["terms", "magnitude"])
def test_it_computes_what_a_dense_base_does(kind, spec):
    base = kind()
    twin = oracle(base)
    assert {w.replacement() for p, w in linear_maps(base).items() if p != "lm_head"} != {None}
    plain = logits(base)
    model = compile_spec(parse_spec(spec), base, seed=3)
    assert torch.equal(logits(model), plain)
    other = compile_spec(parse_spec(spec), twin, seed=3)
    for adapted in (model, other):
        randomize(adapted)
    wanted = logits(other)
    near(logits(model), wanted, ROUNDING.get(kind, 1e-4))
    assert (wanted - plain).norm() > 0.1 * plain.norm()


# One shipped spec for each transform, and one with a magnitude.
METHODS = (
    *("lora", "bd_lora", "bishare_gt", "bishare_ke", "bishare_ss", "dora", "hydralora", "loha", "masa"),
    *("gralora", "metatt", "miss", "mos", "nola", "prolora", "randlora", "shared_core", "uni_lora", "vb_lora"),
)  # fmt: skip
LOADINGS = "spec s target q_proj, down_proj share a per model rank 2 via Loadings(vectors = 4)"


def method(name):
    if name == "loadings":  # No shipped spec has them.
        return parse_spec(LOADINGS)
    return read_file(shipped_specs()[name])[0].with_params(TINY[name])


def test_there_is_a_method_for_each_transform():
    texts = (shipped_specs()[name].read_text() for name in METHODS)
    used = {use for text in texts for use in re.findall(r"via (\w+)", text)}
    assert used | {"Identity", "Loadings"} >= {*transform_names()}


@pytest.mark.parametrize("name", [*METHODS, "loadings"])
def test_each_transform_and_its_gradient(kind, name):
    """As on the dequantised base."""
    base = kind()
    twin = compile_spec(method(name), oracle(base), seed=3)
    model = compile_spec(method(name), base, seed=3)
    results = []
    for adapted in (model, twin):
        randomize(adapted, frozen=False)
        adapted.train()  # In eval mode bitsandbytes repacks four bits.
        found = adapted(IDS, labels=IDS, use_cache=False)
        found.loss.backward()
        tensors = adapted.bishare.tensors().items()
        results.append((found.logits, {n: t.grad for n, t in tensors if t.requires_grad}))
    (logits, gradients), (expected, wanted) = results
    near(logits, expected, ROUNDING.get(kind, 1e-4))
    for tensor, gradient in wanted.items():
        near(gradients[tensor], gradient, 3 * ROUNDING.get(kind, 1e-4))


@pytest.mark.parametrize("spec", [SPEC, SCALED], ids=["terms", "magnitude"])
def test_it_trains_and_is_kept(kind, spec, tmp_path):
    model = compile_spec(parse_spec(spec), kind()).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        losses.append(float(loss))
        optimizer.step()
    assert losses[-1] < losses[0] - 0.1
    assert all(t.grad.any() for t in model.bishare.tensors().values())
    model.eval()
    model.bishare.save_pretrained(tmp_path / "adapter")
    loaded = load_adapter(tmp_path / "adapter", kind())
    near(logits(loaded), logits(model), REPEATED.get(kind, 0.0))
    assert all(
        torch.equal(tensor, loaded.bishare.tensors()[name])
        for name, tensor in model.bishare.tensors().items()
    )
    assert loaded.bishare.plan.base.parameters == inspect_model(dense()).parameters
    model.bishare.export(tmp_path / "peft")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["r"] == 2
    # The export is of the adapter alone, and so fits the dense base too.
    import peft

    base = oracle(model)
    exported = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "peft")
    there = load_adapter(tmp_path / "adapter", base)
    torch.testing.assert_close(logits(exported), logits(there), rtol=1e-4, atol=1e-4)


def test_it_is_made_dense_to_be_merged(kind):
    base = kind()
    twin = compile_spec(parse_spec(SPEC), oracle(base), seed=3)
    model = compile_spec(parse_spec(SPEC), base, seed=3)
    for adapted in (model, twin):
        randomize(adapted)
    before = logits(model)
    with pytest.raises(AdapterError, match="BS622"):
        model.bishare.merge()
    near(logits(model), before, REPEATED.get(kind, 0.0))
    report = model.bishare.merge(dequantize=True)
    assert report.dequantized == len(model.bishare.plan.sites)
    twin.bishare.merge()
    # What bitsandbytes has packed for a CPU that computes in bfloat16 is rounded.
    places = ("self_attn.q_proj", "mlp.down_proj")
    for layer, other in zip(model.model.layers, twin.model.layers, strict=True):
        for place in places:
            weight = layer.get_submodule(place).weight
            assert type(layer.get_submodule(place)) is nn.Linear
            torch.testing.assert_close(
                weight.float(), other.get_submodule(place).weight, rtol=1e-2, atol=5e-3
            )
    model.bishare.unmerge()
    near(logits(model), before, REPEATED.get(kind, 0.0))
    plain = model.bishare.merge_and_unload(dequantize=True)
    assert not any("bishare" in name for name, _ in plain.named_modules())


def test_the_command_merges_it_into_a_dense_checkpoint(kind, tmp_path, capsys):
    base, adapter, out = checkpoint(kind, tmp_path), tmp_path / "adapter", tmp_path / "merged"
    model = compile_spec(parse_spec(SPEC), load(base), seed=3)
    plain = logits(model)
    randomize(model)
    model.bishare.save_pretrained(adapter)
    wanted = logits(model)
    assert (wanted - plain).norm() > 0.1 * plain.norm()

    command = ["merge", str(adapter), "--model", str(base), "--out", str(out)]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "BS622" in said
    assert "--dequantize" in said
    assert not out.exists()
    assert main([*command, "--dequantize"]) == 0
    assert f"({len(model.bishare.plan.sites)} dequantised)" in capsys.readouterr().out
    merged = load(out)
    # The layers that the adapter does not touch are dense too: one config speaks for all.
    assert not hasattr(merged.config, "quantization_config")
    assert {w.replacement() for w in linear_maps(merged).values()} == {None}
    assert {type(w.module) for w in linear_maps(merged).values()} <= {nn.Linear, nn.Embedding}
    near(logits(merged), wanted, max(REPEATED.get(kind, 1e-4), ROUNDING.get(kind, 1e-4)))
