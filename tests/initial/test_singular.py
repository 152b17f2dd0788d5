"""Starts that are singular directions of the base's weights, against torch's own decomposition."""

import copy
import json
import warnings

import pytest
import torch
from torch import nn

from bishare_dsl import compile_spec, load_adapter, parse_spec, plan_spec
from bishare_dsl.cli.main import main
from bishare_dsl.diagnostics import AdapterError, BishareWarning
from bishare_dsl.fit.fit import fit
from bishare_dsl.fit.pairs import read_pairs
from bishare_dsl.initial import singular
from bishare_dsl.initial.singular import _DIRECT_SIDE, directions
from bishare_dsl.loading import read_fitting
from bishare_dsl.models.inspect import inspect_model, linear_maps
from tests.support.checks import check_spec, randomize
from tests.support.families import tiny_inputs, tiny_model
from tests.support.quantised import quantise
from tests.support.stored import load_stored

PISSA = "share s per module rank 3 init A svd, B svd"
XS = "share s per module rank 3 via Core init A svd_vectors, B svd_scaled freeze A, B"
TARGETS = {
    "llama": "attention_inputs, mlp_ups, mlp_downs",
    "qwen2": "q_proj, o_proj",
    "gpt2": "c_attn, c_fc",
    "mixtral": "v_proj, up_proj",
}


def spec(share, family="llama"):
    return parse_spec(f"spec x\ntarget {TARGETS[family]}\n{share}")


def adapted(share, family="llama", **settings):
    return compile_spec(spec(share, family), tiny_model(family), **settings)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def logits(model):
    with torch.no_grad():
        return model(**tiny_inputs(model)).logits


def part(weight, rows):
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    return u[:, rows] * s[rows] @ vh[rows]


@pytest.mark.each_once
@pytest.mark.parametrize("share", [PISSA, XS])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_invariants(family, share):
    check_spec(spec(share, family), tiny_model(family))


@pytest.mark.each_once
@pytest.mark.parametrize("family", TARGETS)
@pytest.mark.parametrize("bottom", ["", "_bottom"])
@pytest.mark.parametrize("scale", [1, 4, -0.5])
def test_scale_times_the_product_is_a_part_of_the_weight(family, bottom, scale):
    start = f"svd{bottom}"
    model = adapted(f"share s per module rank 3 scale {scale} init A {start}, B {start}", family)
    tensors, maps = model.bishare.tensors(), linear_maps(model)
    rows = slice(-3, None) if bottom else slice(3)
    for term in model.bishare.plan.terms:
        a, b = (tensors[term.tensors[role]].detach() for role in "AB")
        sign = 1 if term.scale == scale else -1
        assert term.scale == sign * scale
        expected = part(maps[term.site].matrix(), rows) * (1 if scale > 0 else -1)
        close(sign * term.scale * b.T @ a, sign * expected * sign)
        squares = (a.square().sum(1), b.square().sum(1))
        close(*squares)  # Either has its half of the singular values.


def test_what_is_shared_has_the_directions_of_all_and_each_is_fitted_to_it():
    model = adapted("share s A per layer, in B per module rank 3 scale 2 init A svd, B svd")
    plan, tensors, maps = model.bishare.plan, model.bishare.tensors(), linear_maps(model)
    pool = next(pool for pool in plan.pools if pool.role == "A" and len(pool.members) > 2)
    weights = [maps[path].matrix() for path in pool.members]
    _, s, vh = torch.linalg.svd(torch.cat(weights), full_matrices=False)
    a = tensors[pool.tensor].detach()
    close((a * vh[:3]).sum(1).abs(), (s[:3] / 2).sqrt())
    for path, weight in zip(pool.members, weights, strict=True):
        term = next(term for term in plan.terms_of[path] if term.share == "s")
        b = tensors[term.tensors["B"]].detach()
        close(2 * b.T @ a, weight @ vh[:3].T @ vh[:3])


def test_of_a_large_weight():
    """Krylov iteration, held to the whole decomposition; the same each time."""
    random = torch.Generator().manual_seed(0)
    u, _ = torch.linalg.qr(torch.randn(1200, 1100, generator=random))
    v, _ = torch.linalg.qr(torch.randn(1100, 1100, generator=random))
    weight = u * torch.arange(1, 1101).pow(-0.5) @ v.T  # Falls off as slowly as those of models.
    assert min(weight.shape) > _DIRECT_SIDE
    found = directions(weight, 8)
    close(found.values, torch.arange(1, 9).pow(-0.5))
    close(found.left.T * found.values @ found.right, part(weight, slice(8)))
    assert all(map(torch.equal, found, directions(weight, 8)))
    close(directions(weight.T, 8).values, found.values)
    close(directions(weight, 3, bottom=True).values, torch.arange(1098, 1101).pow(-0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_model_is_its_base_up_to_rounding(dtype):
    base = tiny_model("llama").to(dtype)
    expected, reach = logits(base), 8 * torch.finfo(dtype).eps
    model = compile_spec(spec(PISSA), copy.deepcopy(base))
    assert (logits(model) - expected).abs().max() <= reach * expected.abs().max()
    model.bishare.unload()
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("share", [PISSA, XS])
def test_it_is_stored_and_never_computed_again(share, tmp_path, monkeypatch):
    model = adapted(share)
    with warnings.catch_warnings():
        warnings.simplefilter("error", BishareWarning)
        model.bishare.save_pretrained(tmp_path)
    saved = load_stored(tmp_path)
    assert saved.keys() == model.bishare.plan.tensor.keys()
    monkeypatch.setattr(singular, "directions", pytest.fail)
    other = tiny_model("llama")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    found = load_adapter(tmp_path, other).bishare.tensors()
    for name, tensor in model.bishare.tensors().items():
        assert torch.equal(found[name], tensor)
        assert torch.equal(saved[name], tensor)
        assert found[name].requires_grad is tensor.requires_grad


def test_what_is_drawn_keeps_its_start_without_being_stored(tmp_path):
    model = adapted("share s per module rank 3 init A svd, B kaiming_uniform")
    tensors = model.bishare.tensors()
    name = "s.layers.0.self_attn.q_proj.B"
    assert torch.equal(tensors[f"{name}.start"], tensors[name])
    randomize(model, frozen=False)
    model.bishare.save_pretrained(tmp_path)
    saved = load_stored(tmp_path).keys()
    assert not any(stored.endswith("B.start") for stored in saved)
    assert torch.equal(logits(load_adapter(tmp_path, tiny_model("llama"))), logits(model))


class Opaque(nn.Module):
    """A layer as a quantiser makes one: it has another weight than it was given, and tells it by request."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("codes", (linear.weight * 8).round().to(torch.int8))

    def dequantize(self):
        return self.codes.float() / 8

    def forward(self, x):
        return x @ self.dequantize().to(x).T


def test_of_a_quantised_base_the_directions_are_those_of_what_it_computes_with():
    base = quantise(tiny_model("llama"), lambda path: path != "lm_head", Opaque)
    model = compile_spec(spec(PISSA), copy.deepcopy(base))
    close(logits(model), logits(base))
    tensors = model.bishare.tensors()
    for term in model.bishare.plan.terms:
        a, b = (tensors[term.tensors[role]].detach() for role in "AB")
        close(b.T @ a, part(model.get_submodule(term.site).dequantize(), slice(3)))
    randomize(model, frozen=False)
    expected = logits(model)
    model.bishare.merge(dequantize=True)
    close(logits(model), expected)


def test_shapes_alone_give_no_tensors(tmp_path, capsys):
    file = tmp_path / "x.share"
    file.write_text(f"spec x\ntarget q_proj\n{PISSA}\n")
    arguments = ["compile", str(file), "--model", "smollm2-135m", "--out", str(tmp_path / "out")]
    assert main(arguments) == 1
    assert "[BS688]: `s.layers.0.self_attn.q_proj.A` starts from" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["plan", str(file), "--model", "smollm2-135m", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["frozen"] == planned["trainable"] > 0
    assert planned["bytes"] == 4 * (planned["frozen"] + planned["trainable"])
    assert main(["plan", str(file), "--model", "smollm2-135m"]) == 0
    frozen = f"with {planned['frozen']:,} frozen parameters that start as the base's weights say"
    assert frozen in capsys.readouterr().out
    assert main([*arguments[:-2], "--emit", "graph"]) == 0


def test_what_is_subtracted_stands_in_the_plan():
    plan = plan_spec(spec(f"{PISSA} dropout 0.5 scale 2"), tiny_model("llama"))
    for terms in plan.terms_of.values():
        learned, away = terms
        assert (learned.share, learned.scale, learned.dropout) == ("s", 2, 0.5)
        assert (away.share, away.scale, away.dropout) == ("s.start", -2, 0)
        for role, name in learned.tensors.items():
            tensor, start = plan.tensor[name], plan.tensor[away.tensors[role]]
            assert (start.name, start.like, start.trainable) == (f"{name}.start", name, False)
            assert (start.shape, start.init, start.owner) == (tensor.shape, "svd", tensor.owner)


def test_a_fit_has_no_weights(tmp_path):
    model = adapted("share s per module rank 2")
    randomize(model)
    model.bishare.save_pretrained(tmp_path / "given")
    file = tmp_path / "x.share"
    file.write_text(f"spec x\ntarget q_proj\n{PISSA}\n")
    stored, _ = read_fitting(tmp_path / "given", inspect_model(tiny_model("llama")))
    plan = plan_spec(file, tiny_model("llama"))
    with pytest.raises(AdapterError, match="BS688"):
        fit(plan, read_pairs([("a", stored)]))
