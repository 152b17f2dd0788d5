"""A LoRA in GGUF: what llama.cpp computes with it, what is in the file, and what is refused."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bishare_dsl import compile_spec, parse_spec
from bishare_dsl.convert import gguf as exporting
from tests.support.adapted import moved
from tests.support.families import _GROUPED, TINY_FAMILIES, tiny_model

gguf = pytest.importorskip("gguf")

# Every module, two terms of other ranks and scales, and one module in other layers than the rest.
TEXT = """
spec all
target kind "*"
share local per module rank 2 scale 2
share some where layer == 1 per layer, kind rank 3 scale 0.5 via SS
"""
IDS = torch.randint(64, (1, 12), generator=torch.Generator().manual_seed(7))
# llama.cpp takes the query width for the hidden width in these two.
EVEN = {"qwen2": {"head_dim": 8}, "phi3": {"head_dim": 8}}
SETTINGS = {
    **{family: (family, EVEN.get(family, {})) for family in exporting.FAMILIES},
    "mistral": ("mistral", {"sliding_window": None}),
    "falcon, no groups": ("falcon", {"multi_query": False}),
    "falcon, groups": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
}


# A layer with attention to all, behind five that slide; a layer without rotation, behind three with.
_MOE = {"num_experts": 4, "num_experts_per_tok": 2}
_WIDTHS = {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 40}
MORE = {
    "qwen3_moe": {**_MOE, "moe_intermediate_size": 24, "norm_topk_prob": True},
    "olmoe": {**_MOE, "num_key_value_heads": 4, "head_dim": 8},
    "qwen2_moe": {**_MOE, **_WIDTHS, "head_dim": 8},
    "gemma3_text": {"num_hidden_layers": 6, "query_pre_attn_scalar": 10, "sliding_window": 16},
    "smollm3": {"num_hidden_layers": 4},
}


def base_of(family, overrides):
    """A tiny model, of a family that the other tests do not have too."""
    if family in TINY_FAMILIES:
        return tiny_model(family, **overrides)
    config = AutoConfig.for_model(family, **{**_GROUPED, **MORE[family], **overrides})
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def adapted(family, text=TEXT, **overrides):
    return moved(compile_spec(parse_spec(text), tiny_model(family, **overrides), seed=3))


@pytest.mark.parametrize(("family", "overrides"), SETTINGS.values(), ids=SETTINGS)
@pytest.mark.filterwarnings("ignore::bishare_dsl.diagnostics.BishareWarning")
def test_llama_cpp_computes_the_same(family, overrides, tmp_path):
    from tests.convert.gguf_base import write_base
    from tests.convert.libllama import llama

    model = base_of(family, overrides)
    write_base(tmp_path / "base.gguf", model)
    with torch.no_grad():
        plain = model(IDS).logits[0]
    # llama.cpp looks GELU up in a table of float16.
    exact = family not in ("gpt2", "falcon", "gemma2", "gemma3_text")
    close = {"rtol": 0, "atol": 2e-5 if exact else 5e-3}
    with llama(tmp_path / "base.gguf") as base:
        torch.testing.assert_close(base.logits(IDS[0].tolist()), plain, **close)
        moved(compile_spec(parse_spec(TEXT), model, seed=3))
        with torch.no_grad():
            want = model(IDS).logits[0]
        assert (want - plain).abs().max() > 1
        model.bishare.export(tmp_path / "lora.gguf", "gguf")
        base.use(tmp_path / "lora.gguf")
        torch.testing.assert_close(base.logits(IDS[0].tolist()), want, **close)


def test_every_family_of_the_tests_is_known_but_one_that_llama_cpp_has_not():
    assert TINY_FAMILIES.keys() - exporting.FAMILIES.keys() == {"opt"}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_is_in_the_file(tmp_path, dtype):
    model = adapted("qwen3")
    report = model.bishare.export(tmp_path / "lora.gguf", "gguf", dtype=dtype)
    file = gguf.GGUFReader(tmp_path / "lora.gguf")
    fields = {name: field.contents() for name, field in file.fields.items()}
    assert fields["general.architecture"] == "qwen3"
    assert (fields["general.type"], fields["adapter.type"]) == ("adapter", "lora")
    assert fields["adapter.lora.alpha"] == 0
    assert len(file.tensors) == 2 * report.modules == 28
    kind = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]
    assert {tensor.tensor_type.name for tensor in file.tensors} == {kind}
    rounded = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in file.tensors}
    down, up = (torch.tensor(rounded[f"blk.1.ffn_up.weight.lora_{label}"]) for label in "ab")
    from bishare_dsl.convert.effective import effective_factors

    site = next(s for s in model.bishare.plan.sites if s.path == "model.layers.1.mlp.up_proj")
    a, b = effective_factors(model.bishare.plan, model.bishare.tensors(), site)
    assert torch.equal(down, a.to(getattr(torch, dtype)).float())
    assert torch.equal(up, b.t().to(getattr(torch, dtype)).float())


def test_experts_are_one_pair_for_all(tmp_path):
    text = """
    spec s
    target parent experts
    share some per layer, kind rank 1
    share more where expert in 1..2 per layer, kind, expert rank 2
    """
    model = adapted("mixtral", text)
    report = model.bishare.export(tmp_path / "lora.gguf", "gguf")
    assert report.modules == 2 * 4 * 3
    found = {t.name: torch.tensor(t.data) for t in gguf.GGUFReader(tmp_path / "lora.gguf").tensors}
    assert len(found) == 2 * 2 * 3
    down, up = (found[f"blk.1.ffn_up_exps.weight.lora_{label}"] for label in "ab")
    assert down.shape == (4, 3, 32)
    assert up.shape == (4, 48, 3)
    assert not down[0, 1:].any(), "what has a lower rank is filled up"
    from bishare_dsl.convert.effective import delta

    for site in model.bishare.plan.sites:
        if site.path.startswith("model.layers.1") and site.kind == "up_proj":
            dense = delta(model.bishare.plan, model.bishare.tensors(), site)
            torch.testing.assert_close(up[site.expert] @ down[site.expert], dense)
