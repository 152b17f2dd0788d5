import json
import re

import peft
import pytest
import torch
from safetensors.torch import load_file

from bishare_dsl import compile_spec, parse_spec
from bishare_dsl.convert import peft as exporting
from bishare_dsl.convert.effective import effective_factors
from bishare_dsl.convert.export import export_adapter
from bishare_dsl.folder.files import read_adapter
from tests.support.adapted import GPT2, SPEC, logits
from tests.support.families import tiny_model

get_pattern_key = peft.utils.other.get_pattern_key
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


# Ranks differ between modules, so that some are padded.
UNEVEN = """
spec uneven
target q_proj, v_proj, down_proj
share local per module rank match kind { q_proj: 5; else: 2 } scale 3
share low where layer == 0 per layer rank 3 via SS
"""
# Frozen factors, and diagonals between and behind them, as VeRA has them; bases, as NOLA has them.
GAINS = """
spec gains
target q_proj, v_proj, down_proj
share s per model rank 4 scale 3 via SS freeze A, B init B kaiming_uniform gain rank init 0.1, out init 0
share local per module rank 2 gain rank init 1, out init 1
"""
BASIS = """
spec basis
target q_proj, v_proj, down_proj
share s per model rank 2 scale 2 via Basis(count = 5) freeze A, B init B kaiming_uniform gain out init 1
"""
BANK = """
spec bank
target q_proj, down_proj
share s per model rank 2 via VectorBank(vectors = 8, length = 4) gain rank init 1 start nonzero
"""
SOME = "spec some\ntarget q_proj share x where layer == 1 per module rank 2"


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("llama", SPEC),
        ("llama", UNEVEN),
        ("llama", GAINS),
        ("llama", BASIS),
        ("llama", BANK),
        ("gpt2", GAINS.replace("q_proj, v_proj, down_proj", "c_attn, c_fc")),
        ("gpt2", GPT2),
        ("qwen2", SPEC),
        ("gemma2", SPEC),
        ("phi3", "spec s target qkv_proj, down_proj share x per layer rank 4 via KE(size = 4)"),
        ("mixtral", "spec s target q_proj, v_proj share x per model rank 4 via GT(size = 8)"),
        ("opt", "spec s target q_proj, fc1 share x per model rank 4 via SS"),
        ("falcon", "spec s target dense share x per model rank 4"),
    ],
)
def test_peft_computes_the_same(adapted, ids, tmp_path, family, text):
    model = adapted(family, text)
    want = logits(model, ids)
    assert (want - logits(tiny_model(family), ids)).abs().max() > 1e-2
    report = model.bishare.export(tmp_path / "peft")
    loaded = peft.PeftModel.from_pretrained(tiny_model(family), tmp_path / "peft")
    torch.testing.assert_close(logits(loaded, ids), want, rtol=1e-4, atol=1e-4)
    wrapped = [n for n, m in loaded.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)]
    assert len(wrapped) == report.modules
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(logits(merged, ids), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("text", [GAINS, BASIS])
def test_what_was_saved_as_a_seed_is_exported_as_numbers(adapted, ids, tmp_path, text):
    model = compile_spec(parse_spec(text), tiny_model("llama"))
    with torch.no_grad():
        for tensor in model.bishare.tensors().values():
            if tensor.requires_grad:
                tensor.add_(0.2)
    model.bishare.save_pretrained(tmp_path / "adapter")
    stored = read_adapter(tmp_path / "adapter")
    assert stored.config.ways("seed")
    export_adapter(tmp_path / "peft", stored.plan, stored.tensors(), tiny_model("llama"))
    loaded = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "peft")
    torch.testing.assert_close(logits(loaded, ids), logits(model, ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target", ["peft", "sglang"])
def test_what_engines_document(adapted, tmp_path, target):
    """vLLM reads ranks by patterns, and SGLang one rank."""
    model, uniform = adapted(text=UNEVEN), target == "sglang"
    report = model.bishare.export(tmp_path / "peft", format=target)
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    plan = model.bishare.plan
    assert {path.name for path in (tmp_path / "peft").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert config["peft_type"] == "LORA"
    assert config["r"] == config["lora_alpha"] == report.rank == 8
    assert config["bias"] == "none"
    assert config["modules_to_save"] is None
    assert config["use_dora"] is config["use_rslora"] is False
    assert bool(config["rank_pattern"]) is not uniform
    assert config["alpha_pattern"] == config["rank_pattern"]
    want = set()
    for site in plan.sites:
        a, b = (f"base_model.model.{site.path}.lora_{factor}.weight" for factor in "AB")
        want |= {a, b}
        rows = plan.rows(site.path)
        rank = 8 if uniform else rows
        # By PEFT's own rule, which is vLLM's.
        assert (
            config["rank_pattern"].get(get_pattern_key(config["rank_pattern"], site.path), 8)
            == rank
        )
        assert tensors[a].shape == (rank, site.d_in)
        assert tensors[b].shape == (site.d_out, rank)
        down, up = effective_factors(plan, model.bishare.tensors(), site)
        assert torch.equal(tensors[a][:rows], down)
        assert torch.equal(tensors[b][:, :rows], up.t())
        assert not tensors[a][rows:].any()
        assert not tensors[b][:, rows:].any()
    assert tensors.keys() == want
    assert {t.dtype for t in tensors.values()} == {torch.float32}


def test_a_pattern_matches_the_modules_that_are_meant_and_no_others():
    # Paths that end in others, a name that ends in another, and a dot that is a dot.
    paths = ["h.1.q", "a.h.1.q", "h.11.q", "h.1.xq", "h.11q", "h.21.q", "a.q", "q"]
    ranks = {path: i + 1 for i, path in enumerate(paths)}
    pattern = exporting._pattern(ranks, 3)
    for path, rank in ranks.items():
        assert pattern.get(get_pattern_key(pattern, path), 3) == rank
        assert sum(bool(re.match(rf"(.*\.)?({key})$", path)) for key in pattern) == (rank != 3)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_target_modules_are_paths_where_kinds_would_choose_more_and_the_base_is_named(tmp_path):
    model = tiny_model("llama")
    model.config.name_or_path = "owner/base"
    compile_spec(SOME, model).bishare.export(tmp_path / "peft")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["model.layers.1.self_attn.q_proj"]
    assert config["base_model_name_or_path"] == "owner/base"


def test_target_modules_are_a_regex_where_paths_would_choose_more():
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(1, 1)})
    model["b"] = torch.nn.ModuleDict({"a": torch.nn.Linear(1, 1)})
    pattern = exporting._target_modules(model, ["a"])
    assert pattern == "a"  # a string, which PEFT matches whole


def test_an_export_while_merged_is_of_the_adapter_and_is_read_again(adapted, ids, tmp_path):
    model = adapted(text=UNEVEN)
    want = logits(model, ids)
    model.bishare.merge()
    report = model.bishare.export(tmp_path / "peft")
    loaded = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "peft")
    torch.testing.assert_close(logits(loaded, ids), want, rtol=1e-4, atol=1e-4)
    assert report.total_error <= report.worst.error < 1e-6
    assert str(report).startswith("exported 6 modules at ranks 2 to 8 to ")
    assert "read again: the updates of all modules are equal" in str(report)
