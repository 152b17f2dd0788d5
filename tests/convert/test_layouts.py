"""Each row of the table of layouts is written and read: nothing is left over, and dW is equal at every module."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bishare_dsl import load_adapter, parse_spec, plan_spec
from bishare_dsl.convert import TARGETS, experts, from_peft
from bishare_dsl.convert.effective import delta
from bishare_dsl.convert.export import export_adapter
from bishare_dsl.convert.from_peft import read_peft
from bishare_dsl.convert.layouts import LAYOUTS
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.initial.values import draw
from bishare_dsl.loading import read_fitting
from bishare_dsl.models import architecture_of
from tests.support.families import tiny_model

ROOT = Path(__file__).parents[2]
DENSE = "spec s\ntarget q_proj, k_proj, down_proj\nshare x per layer, kind rank 3 scale 0.5\n"
EXPERTS = """
spec s
target parent experts, q_proj
share x  A per layer, kind  B per layer, kind, expert  rank 2  where gate_proj, up_proj
share y  A per layer, kind, expert  B per layer, kind  rank 2  where down_proj
share z  per module  rank 3 scale 2.0  where q_proj
"""
SOME_EXPERTS = "spec s\ntarget up_proj, down_proj\nshare x per module rank 2 where expert in 1..2\n"
FOLDERS = [target for target in TARGETS if target != "gguf"]
CASES = [
    *[("qwen3_moe", SOME_EXPERTS, target) for target in ("peft", "vllm", "gguf")],
    *[("llama", DENSE, target) for target in TARGETS],
    *[("mixtral", EXPERTS, target) for target in TARGETS],
    ("qwen3_moe", EXPERTS, "vllm"),
    ("qwen3_moe", EXPERTS, "sglang"),
]


def adapter(family, text):
    model = tiny_model(family)
    plan = plan_spec(parse_spec(text), model)
    torch.manual_seed(1)
    return model, plan, {n: t + 0.2 * torch.randn(t.shape) for n, t in draw(plan, 0).items()}


def place(tmp_path, target):
    return tmp_path / ("out.gguf" if target == "gguf" else "out")


def same(model, plan, tensors, found):
    """What is read adds dW to each module, and nothing to any other."""
    if found.suffix == ".gguf":  # That of others is not read.
        _, lora, values = read_peft(found, architecture_of(model), lambda: model, "gguf")
    else:
        stored, _ = read_fitting(found, model)
        lora, values = stored.plan, stored.tensors()
    again = {site.path: site for site in lora.sites}
    for site in plan.sites:
        wanted = delta(plan, tensors, site)
        torch.testing.assert_close(
            delta(lora, values, again.pop(site.path)), wanted, atol=1e-6, rtol=1e-5
        )
    for path in again:
        assert not delta(lora, values, again[path]).any(), path


@pytest.mark.each_once
@pytest.mark.parametrize(("family", "text", "target"), CASES)
def test_what_is_written_is_read(family, text, target, tmp_path):
    model, plan, tensors = adapter(family, text)
    out = place(tmp_path, target)
    found = export_adapter(out, plan, tensors, model, target)
    assert found.modules == sum(plan.rows(site.path) > 0 for site in plan.sites)
    assert found.worst.error < 1e-5
    same(model, plan, tensors, out)


@pytest.mark.parametrize("source", FOLDERS)
def test_peft_and_llama_cpp_load_what_was_converted(source, tmp_path):
    from peft import PeftModel

    from tests.convert.gguf_base import write_base
    from tests.convert.libllama import llama

    model, plan, tensors = adapter("llama", DENSE)
    export_adapter(tmp_path / "first", plan, tensors, model, source)
    stored, _ = read_fitting(tmp_path / "first", model)
    ids = torch.arange(3, 13).view(1, -1)
    wanted = load_adapter(tmp_path / "first", tiny_model("llama")).eval()(ids).logits
    for target in ("peft", "vllm", "sglang"):
        export_adapter(tmp_path / target, stored.plan, stored.tensors(), model, target)
        loaded = PeftModel.from_pretrained(tiny_model("llama"), str(tmp_path / target)).eval()
        torch.testing.assert_close(loaded(ids).logits, wanted, atol=2e-5, rtol=0)
    export_adapter(tmp_path / "it.gguf", stored.plan, stored.tensors(), model, "gguf")
    write_base(tmp_path / "base.gguf", tiny_model("llama"))
    with llama(tmp_path / "base.gguf") as base:
        base.use(tmp_path / "it.gguf")
        torch.testing.assert_close(base.logits(ids[0].tolist()), wanted[0], atol=2e-5, rtol=0)


@pytest.mark.parametrize("target", FOLDERS)
def test_a_tensor_too_many_is_named(target, tmp_path):
    model, plan, tensors = adapter("mixtral", EXPERTS)
    export_adapter(tmp_path / "out", plan, tensors, model, target)
    file = tmp_path / "out" / "adapter_model.safetensors"
    values = load_file(file)
    key, value = next(iter(values.items()))
    for more in (key.replace("layers.0", "layers.77"), "strange.tensor"):
        save_file(values | {more: value.clone()}, file)
        with pytest.raises(AdapterError) as caught:
            read_fitting(tmp_path / "out", model)
        assert more.removeprefix("base_model.model.").rpartition(".lora")[0] in str(caught.value)


def test_a_row_that_drifts_is_an_error(tmp_path, monkeypatch):
    """If a reader takes a tensor otherwise than the writer, the module is named."""

    def drifted(factors, *given):
        origins = experts.expand_experts(factors, *given)
        up, gate = (f"model.layers.0.mlp.experts.0.{kind}_proj" for kind in ("up", "gate"))
        factors[up], factors[gate] = factors[gate], factors[up]
        return origins

    monkeypatch.setattr(from_peft, "expand_experts", drifted)
    model, plan, tensors = adapter("mixtral", EXPERTS)
    with pytest.raises(AdapterError, match=r"BS607.*experts\.0\.(up|gate)_proj` differs"):
        export_adapter(tmp_path / "out", plan, tensors, model, "sglang")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", FOLDERS)
def test_what_cannot_be_read_again_is_removed(target, tmp_path, monkeypatch):
    model, plan, tensors = adapter("llama", DENSE)
    monkeypatch.setattr(from_peft, "FACTOR", re.compile("(x)(y)(z)"))  # Factors become strange.
    with pytest.raises(AdapterError, match="BS656"):
        export_adapter(tmp_path / "out", plan, tensors, model, target)
    assert not (tmp_path / "out").exists()


def test_the_page_has_the_table():
    page = (ROOT / "docs" / "layouts.md").read_text("utf-8")
    assert {*re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)} == {*LAYOUTS} == {*TARGETS}


def test_two_names_that_are_one_in_peft_are_refused(tmp_path):
    """PEFT takes the first of them, so that dW would depend on who reads."""
    model, plan, tensors = adapter("llama", DENSE)
    export_adapter(tmp_path / "out", plan, tensors, model, "peft")
    file = tmp_path / "out" / "adapter_model.safetensors"
    values = load_file(file)
    name = next(iter(values))
    values[name.removeprefix("base_model.model.")] = values[name] * 3
    save_file(values, file)
    with pytest.raises(AdapterError, match=r"BS608.*is in it twice"):
        read_fitting(tmp_path / "out", model)
