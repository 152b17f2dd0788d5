import copy
import re

import pytest
import torch
from accelerate import cpu_offload
from torch import nn

from bishare_dsl import compile_spec, load_adapter, parse_spec
from bishare_dsl.adapted import merge as merging
from bishare_dsl.convert.effective import delta
from bishare_dsl.diagnostics import AdapterError, BishareWarning
from tests.support.adapted import GPT2, SPEC, logits
from tests.support.checks import randomize
from tests.support.families import tiny_inputs, tiny_model
from tests.support.quantised import Int8Linear, quantise

CASES = [("llama", SPEC), ("gpt2", GPT2), ("qwen3", SPEC)]


def weights(model):
    """Copies of everything that is the base's."""
    state = model.state_dict()
    return {name: t.clone() for name, t in state.items() if "bishare" not in name}


def same(a, b):
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a
    )


@pytest.mark.filterwarnings("ignore::bishare_dsl.diagnostics.BishareWarning")
def test_a_magnitude_is_exported_with_the_weights_of_the_base_alone(tmp_path):
    """PEFT's lengths are those of W + dW, and W is not the weight that the model has while it is merged."""
    model = compile_spec("dora", tiny_model("llama"))
    randomize(model, 1)
    model.bishare.export(tmp_path / "before")
    model.bishare.merge()
    with pytest.raises(AdapterError, match=r"BS643.*magnitudes"):
        model.bishare.export(tmp_path / "merged")
    with model.bishare.disable_adapter():
        model.bishare.export(tmp_path / "off")
    model.bishare.unmerge()
    model.bishare.export(tmp_path / "after")
    files = [tmp_path / n / "adapter_model.safetensors" for n in ("before", "off", "after")]
    assert len({file.read_bytes() for file in files}) == 1


@pytest.mark.parametrize(("family", "text"), CASES)
def test_merged_weights_are_base_plus_delta(adapted, family, text):
    model = adapted(family, text)
    handle = model.bishare
    before, tensors = weights(model), handle.tensors()
    handle.merge()
    after = weights(model)
    changed = set()
    for site in handle.plan.sites:
        name = f"{site.path}.weight"
        added = delta(handle.plan, tensors, site)
        assert added.any()
        added = added.t() if family == "gpt2" else added
        torch.testing.assert_close(after[name], before[name] + added)
        changed.add(name)
    assert all(torch.equal(after[n], before[n]) for n in before.keys() - changed)


def small(model, size):
    """Make the update of every site as small as this, of its weight's norm; return that of the first site."""
    handle = model.bishare
    with torch.no_grad():
        for name, tensor in handle.tensors().items():
            tensor.mul_(size if name.endswith(".B") else 1)
    return delta(handle.plan, handle.tensors(), handle.plan.sites[0])


def test_what_bfloat16_keeps_of_a_small_update(adapted):
    """By the definition, `<W' - W, dW> / |dW|^2`, of one kind alone; less than a tenth is lost in float32."""
    model = adapted(dtype=torch.bfloat16)
    added = small(model, 3e-4)
    site = model.bishare.plan.sites[0]
    kind = [s for s in model.bishare.plan.sites if s.kind == site.kind]
    before = {s.path: model.get_submodule(s.path).weight.float().clone() for s in kind}
    updates = {s.path: delta(model.bishare.plan, model.bishare.tensors(), s) for s in kind}
    assert 1e-5 < added.norm() / before[site.path].norm() < 1e-3
    with pytest.warns(BishareWarning, match="BS639.*in bfloat16"):
        report = model.bishare.merge()
    changes = {p: model.get_submodule(p).weight.float() - w for p, w in before.items()}
    want = sum((changes[p] * u).sum() for p, u in updates.items()) / sum(
        u.square().sum() for u in updates.values()
    )
    assert report.survival.kept[site.kind] == pytest.approx(float(want), abs=1e-4)
    assert report.survival.kept[site.kind] < 0.9
    assert "in bfloat16" in str(report)


def test_without_copies_there_is_no_way_back(adapted):
    model = adapted()
    with pytest.warns(UserWarning, match="Already unmerged"):
        model.bishare.unmerge()
    model.bishare.merge(keep_base=False)
    merged = weights(model)
    for action in (model.bishare.unmerge, model.bishare.unload):
        with pytest.raises(AdapterError, match="BS629"):
            action()
    with pytest.raises(AdapterError, match="BS629"), model.bishare.disable_adapter():
        pass
    assert same(weights(model), merged)
    assert model.bishare.merge_and_unload() is model


def test_a_diverged_adapter_changes_nothing(adapted, ids):
    model = adapted()
    base, want = weights(model), logits(model, ids)
    with torch.no_grad():
        model.bishare.tensors()["local.layers.1.mlp.down_proj.A"][0, 0] = torch.inf
    with pytest.raises(AdapterError, match="BS628"):
        model.bishare.merge()
    assert same(weights(model), base)
    assert logits(model, ids).shape == want.shape
    assert not model.bishare.merged


def test_an_interrupted_merge_goes_back_or_refuses_to_run(adapted, ids, tmp_path, monkeypatch):
    model = adapted()
    base, want = weights(model), logits(model, ids)
    merge_site, calls = merging._merge_site, []

    def interrupt(*args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        merge_site(*args)

    monkeypatch.setattr(merging, "_merge_site", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.bishare.merge()
    assert same(weights(model), base)
    assert torch.equal(logits(model, ids), want)
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        model.bishare.merge_and_unload()  # Without copies there is no way back.
    model.bishare.save_pretrained(tmp_path / "adapter")
    monkeypatch.undo()
    handle = model.bishare
    again = (handle.merge_and_unload, handle.merge, handle.unmerge, handle.unload)
    for action in (*again, lambda: logits(model, ids), lambda: copy.deepcopy(model)):
        with pytest.raises(AdapterError, match="BS629"):
            action()
    loaded = load_adapter(tmp_path / "adapter", tiny_model("llama"))
    assert torch.equal(logits(loaded, ids), want)


# Weights that cannot be merged into ---------------------------------------------------------------


def test_a_weight_that_another_module_uses_the_memory_of():
    model = tiny_model("llama")
    layers = model.model.layers
    # Two parameters, one memory.
    layers[0].mlp.gate_proj.weight = nn.Parameter(layers[0].mlp.up_proj.weight.data)
    compile_spec(parse_spec(SPEC), model)
    with pytest.raises(AdapterError, match=r"BS625.*gate_proj"):
        model.bishare.merge()


@pytest.mark.parametrize("shared", ["layer", "mlp", "module", "weight"])
def test_a_module_that_stands_in_two_layers_is_merged_or_untied_as_told(shared, ids):
    """F41: where the adapter runs at both places, so does the merged weight; else what the error says helps."""
    model = tiny_model("llama").eval()
    layers = model.model.layers
    if shared == "layer":
        layers[1] = layers[0]
    elif shared == "mlp":
        layers[1].mlp = layers[0].mlp
    elif shared == "module":
        layers[1].mlp.up_proj = layers[0].mlp.up_proj
    else:
        layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
    compile_spec("spec s\ntarget q_proj, up_proj\nshare x per module rank 2\n", model)
    randomize(model)
    wanted = logits(model, ids)
    if shared in ("module", "weight"):
        with pytest.raises(AdapterError, match="BS625") as caught:
            model.bishare.merge()
        scope = {"torch": torch, "copy": copy, "model": model}
        for code in re.findall(r"`(.+?)`(?:$|,)", str(caught.value.problems[0].help)):
            exec(code, scope)
    model.bishare.merge()
    torch.testing.assert_close(logits(model, ids), wanted)
    model.bishare.unmerge()
    assert torch.equal(logits(model, ids), wanted)


def test_weights_offloaded_to_the_cpu_are_merged(adapted, ids):
    model = adapted()
    want = logits(model, ids)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert model.model.layers[0].mlp.up_proj.weight.is_meta
    torch.testing.assert_close(logits(model, ids), want)
    base = logits_disabled(model, ids)
    model.bishare.merge()
    torch.testing.assert_close(logits(model, ids), want, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits_disabled(model, ids), base)
    model.bishare.unmerge()
    # Under hooks no island is run as one function, whose sums are in another order.
    torch.testing.assert_close(logits(model, ids), want)


def logits_disabled(model, ids):
    with model.bishare.disable_adapter():
        return logits(model, ids)


# Quantised bases ----------------------------------------------------------------------------------


class Dequantisable(Int8Linear):
    def dequantize(self):
        return self.weight * self.scale


def quantised(kind, family="qwen2"):
    model = quantise(tiny_model(family), lambda path: path.endswith((".q_proj", ".up_proj")), kind)
    compile_spec(parse_spec(SPEC), model, seed=3)
    with torch.no_grad():
        for tensor in model.bishare.tensors().values():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)))
    return model


@pytest.mark.parametrize("kind", [Int8Linear, Dequantisable])
def test_a_quantised_base_is_refused(kind):
    model = quantised(kind)
    with pytest.raises(AdapterError, match=rf"BS622.*{kind.__name__}, int8") as caught:
        model.bishare.merge()
    [problem] = caught.value.problems  # once, and not for each layer
    assert "`model.layers.0.self_attn.q_proj` and 3 others are quantised" in problem.message
    assert problem.help is not None
    assert "dequantize=True" in problem.help
    assert not model.bishare.merged


@pytest.mark.parametrize("kind", [Dequantisable, Int8Linear])  # told; by what it computes
def test_a_quantised_base_is_dequantised_on_request(kind, ids):
    model = quantised(kind)
    want, layer = logits(model, ids), model.model.layers[0].self_attn.q_proj
    report = model.bishare.merge(dequantize=True)
    assert report.dequantized == 4
    assert type(model.model.layers[0].self_attn.q_proj) is nn.Linear
    torch.testing.assert_close(logits(model, ids), want, rtol=1e-4, atol=1e-4)
    model.bishare.unmerge()
    assert model.model.layers[0].self_attn.q_proj is layer
    assert torch.equal(logits(model, ids), want)


@pytest.mark.parametrize("how", ["merge", "unload", "export"])
def test_tied_tables_of_two_towers_are_merged_after_a_resize(how, tmp_path):
    """`resize_token_embeddings` makes the tables of T5's towers one module. Found by `make hunt`."""
    model = tiny_model("t5", tie_word_embeddings=True).eval()
    model.resize_token_embeddings(model.config.vocab_size + 3, mean_resizing=False)
    base = copy.deepcopy(model)
    assert model.encoder.embed_tokens is model.decoder.embed_tokens
    compile_spec("spec s\ntarget embeddings, heads\nshare a per module rank 2\n", model)
    randomize(model)
    inputs = tiny_inputs(model)
    with torch.no_grad():
        expected, before = model(**inputs).logits, base(**inputs).logits
        if how == "merge":
            model.bishare.merge()
        elif how == "unload":
            model = model.bishare.merge_and_unload()
        else:
            model.bishare.export(tmp_path / "lora")
            model = base
            load_adapter(tmp_path / "lora", model)
        assert not torch.allclose(expected, before)
        torch.testing.assert_close(model(**inputs).logits, expected)
