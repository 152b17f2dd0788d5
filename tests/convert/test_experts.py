"""Adapters of experts whose weights are one parameter: merged and exported, against the dense reference."""

import copy
import json
import warnings

import pytest
import torch

from bishare_dsl import compile_spec, load_adapter, parse_spec, plan_spec
from bishare_dsl.adapted import merge as merging
from bishare_dsl.convert.effective import delta
from bishare_dsl.convert.export import export_adapter
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.initial.values import draw
from bishare_dsl.models import architecture_of
from tests.models.test_weights import GATES, mixture
from tests.support.checks import loaded_by_peft
from tests.support.families import tiny_model
from tests.support.references import reference_model
from tests.support.stored import import_peft

SPECS = {
    "shared outer": """
        spec s
        target parent experts
        share x  A per layer, kind  B per layer, kind, expert  rank 2
        """,
    "groups of experts, attention too": """
        spec s
        target parent experts, q_proj
        share local  per module  rank 1
        share some   per expert // 2, kind  rank 3 scale 0.5  via KE(size = 4)  where expert != none
        """,
    "some of them": """
        spec s
        target up_proj, down_proj
        share x  per module  rank 2  where expert in 1..2
        """,
}


def adapter(model, text):
    plan = plan_spec(text, model)
    torch.manual_seed(1)
    return plan, {name: t + 0.2 * torch.randn(t.shape) for name, t in draw(plan, 0).items()}


def logits(model):
    ids = torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.each_once
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("family", GATES)
def test_merged(family, spec):
    model = mixture(family)
    plan, tensors = adapter(model, SPECS[spec])
    base = copy.deepcopy(model.state_dict())
    expected = logits(reference_model(model, plan, tensors))
    before = logits(model)
    assert (before - expected).abs().max() > 1e-2
    merging.check(model, plan, tensors, dequantize=False)
    merged = merging.Merged(True, merging.MergeReport(0))
    merging.merge(model, plan, tensors, merged)
    torch.testing.assert_close(logits(model), expected)
    merged.swap(model)
    assert all(torch.equal(value, base[name]) for name, value in model.state_dict().items())
    merged.swap(model)
    torch.testing.assert_close(logits(model), expected)


@pytest.mark.each_once
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("family", GATES)
def test_peft_and_bishare_load_what_was_exported(family, spec, tmp_path):
    import peft

    model = mixture(family)
    plan, tensors = adapter(model, SPECS[spec])
    expected = logits(reference_model(model, plan, tensors))
    report = export_adapter(tmp_path / "peft", plan, tensors, model)
    assert {site.path for site in report.sites} == {term.site for term in plan.terms}
    ours = load_adapter(tmp_path / "peft", mixture(family))
    torch.testing.assert_close(logits(ours), expected, rtol=1e-4, atol=1e-4)
    shapes = architecture_of(model)
    with pytest.raises(AdapterError, match=r"BS656.*its shapes alone do not tell"):
        import_peft(tmp_path / "peft", shapes, tmp_path / "ours")
    if family == "qwen3_moe":  # Its checkpoints have the names of the model.
        export_adapter(tmp_path / "each", plan, tensors, model, format="vllm")
        each = load_adapter(tmp_path / "each", mixture(family))
        torch.testing.assert_close(logits(each), expected, rtol=1e-4, atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=FutureWarning)
        # PEFT looks for the patterns among modules alone, and follows them with parameters too.
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys did not match")
        loaded = peft.PeftModel.from_pretrained(model, tmp_path / "peft").eval()
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys")
@pytest.mark.parametrize(
    "targets", [["down_proj"], ["mlp.experts.gate_up_proj", "experts.down_proj"]]
)
def test_what_peft_has_trained_of_experts_is_imported(targets, tmp_path):
    import peft

    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=["q_proj"], target_parameters=targets,
        rank_pattern={r"layers\.1\.mlp\.experts\.down_proj": 2},
    )  # fmt: skip
    theirs = peft.get_peft_model(mixture("mixtral"), config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
    theirs.save_pretrained(tmp_path / "peft")
    ours = load_adapter(tmp_path / "peft", mixture("mixtral"))
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-4, atol=1e-4)


def test_vllm_needs_the_rank_of_gate_and_up_together(tmp_path):
    model = mixture("qwen3_moe")
    plan = plan_spec("spec s\ntarget gate_proj, up_proj share x per module rank 6", model)
    report = export_adapter(tmp_path / "peft", plan, draw(plan, 0), model)
    assert (report.rank, report.max_lora_rank) == (6, 16)


def folder_of(model, text, folder, layout):
    """Export an adapter of a text; give its plan, its tensors and what was written."""
    from safetensors.torch import load_file

    plan, tensors = adapter(model, text)
    export_adapter(folder, plan, tensors, model, layout)
    written = load_file(folder / "adapter_model.safetensors")
    return plan, tensors, {n.removeprefix("base_model.model."): t for n, t in written.items()}


@pytest.mark.parametrize("family", GATES)
def test_each_expert_has_a_pair_under_the_name_of_checkpoints(family, tmp_path):
    model = mixture(family)
    plan, tensors, written = folder_of(model, SPECS["some of them"], tmp_path / "lora", "vllm")
    assert len(written) == 2 * 3 * 4 * 2, "vLLM wants every map of every expert"
    names = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"} if family == "mixtral" else {}
    for site in (site for site in plan.sites if plan.rows(site.path)):
        path = site.path
        if family == "mixtral":
            path = path.replace(".mlp.", ".block_sparse_moe.").replace(site.kind, names[site.kind])
        a, b = (written.pop(f"{path}.lora_{label}.weight") for label in "AB")
        torch.testing.assert_close(b @ a, delta(plan, tensors, site))
    assert not any(t.any() for t in written.values())
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["down_proj", "gate_proj", "up_proj"]
    assert "target_parameters" not in config


def test_sglang_gets_one_rank(tmp_path):
    """It reads no `rank_pattern`."""
    text = "spec s\ntarget parent experts, q_proj\nshare x per module rank match kind { q_proj: 3; else: 2 }"
    plan, _, written = folder_of(mixture("mixtral"), text, tmp_path / "lora", "sglang")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert (config["r"], config["rank_pattern"]) == (3, {})
    assert {len(t) for name, t in written.items() if "lora_A" in name} == {3}
    assert len(written) == 2 * sum(plan.rows(site.path) > 0 for site in plan.sites)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("family", "more", "target", "taken"),
    [
        # A dense block, and shared experts.
        ("deepseek_v3", {}, "down_proj where expert == none", True),
        ("deepseek_v3", {}, "gate_proj, up_proj where expert == none", True),
        ("deepseek_v3", {}, "o_proj, gate_proj, up_proj, down_proj", True),  # Was wrong in silence.
        ("deepseek_v3", {}, "q_b_proj, o_proj, parent experts", False),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "down_proj where expert == none", True),
        ("qwen3_moe", {}, "q_proj, parent experts", False),
        ("qwen2_moe", {}, "down_proj where expert == none", False),  # PEFT leaves them as they are.
        ("llama", {}, "gate_proj, up_proj, down_proj", False),
    ],
)
def test_what_peft_takes_for_experts_is_refused(family, more, target, taken, tmp_path):
    """PEFT fails at some of these, and adapts experts in silence at others, so none is written."""
    model = tiny_model(family, **more)
    target, _, where = target.partition(" where ")
    where = f"where {where}" if where else ""
    adapted = compile_spec(
        parse_spec(f"spec s target {target} share x {where} per module rank 2"),
        copy.deepcopy(model),
    )
    with torch.no_grad():
        for tensor in adapted.bishare.tensors().values():
            tensor += 0.3
    if taken:
        with pytest.raises(AdapterError, match=r"BS646.*names of experts"):
            adapted.bishare.export(tmp_path / "peft")
        assert not (tmp_path / "peft").exists()
        return
    adapted.bishare.export(tmp_path / "peft")
    loaded = loaded_by_peft(model, tmp_path / "peft")
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-4)
