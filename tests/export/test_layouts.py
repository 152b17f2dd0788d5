"""Each row of the table of layouts is written and read: nothing is left over, and dW is equal at every module."""

from __future__ import annotations

import json
import math
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bishare_dsl import load_adapter, parse_spec, plan_spec
from bishare_dsl.adapter.initial import draw
from bishare_dsl.cli.main import main
from bishare_dsl.compiler import read_fitting
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.export import TARGETS
from bishare_dsl.export.effective import delta
from bishare_dsl.export.export import export_adapter
from bishare_dsl.export.layouts import LAYOUTS
from bishare_dsl.export.peft_config import layout_of
from bishare_dsl.export.report import ExportReport
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
CASES = [
    *[("qwen3_moe", SOME_EXPERTS, target) for target in ("peft", "vllm", "gguf")],
    *[("llama", DENSE, target) for target in TARGETS],
    *[("mixtral", EXPERTS, target) for target in TARGETS],
    ("qwen3_moe", EXPERTS, "vllm"),
    ("qwen3_moe", EXPERTS, "sglang"),
]


def adapter(family: str, text: str) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    model = tiny_model(family)
    plan = plan_spec(parse_spec(text), model)
    torch.manual_seed(1)
    return model, plan, {n: t + 0.2 * torch.randn(t.shape) for n, t in draw(plan, 0).items()}


def place(tmp_path: Path, target: str, name: str = "out") -> Path:
    return tmp_path / (f"{name}.gguf" if target == "gguf" else name)


def convert(out: Path, plan: Any, tensors: Any, model: Any, target: str) -> ExportReport:
    return export_adapter(out, plan, tensors, model, target)


def same(model: Any, plan: Any, tensors: dict[str, torch.Tensor], found: Path) -> None:
    """What is read adds dW to each module, and nothing to any other."""
    stored, _ = read_fitting(found, model)
    values = stored.tensors()
    again = {site.path: site for site in stored.plan.sites}
    for site in plan.sites:
        wanted = delta(plan, tensors, site)
        torch.testing.assert_close(
            delta(stored.plan, values, again.pop(site.path)), wanted, atol=1e-6, rtol=1e-5
        )
    for path in again:
        assert not delta(stored.plan, values, again[path]).any(), path


@pytest.mark.each_once
@pytest.mark.parametrize(("family", "text", "target"), CASES)
def test_what_is_written_is_read(family: str, text: str, target: str, tmp_path: Path) -> None:
    model, plan, tensors = adapter(family, text)
    out = place(tmp_path, target)
    found = convert(out, plan, tensors, model, target)
    assert found.modules == sum(plan.rows(site.path) > 0 for site in plan.sites)
    assert found.worst.error < 1e-5
    assert layout_of(out) == ("gguf" if target == "gguf" else "peft")
    same(model, plan, tensors, out)


@pytest.mark.parametrize("target", TARGETS)
def test_a_layout_leads_back(target: str, tmp_path: Path) -> None:
    """PEFT's folder, converted to each layout and from there to PEFT's."""
    model, plan, tensors = adapter("llama", DENSE)
    convert(tmp_path / "peft", plan, tensors, model, "peft")
    stored, _ = read_fitting(tmp_path / "peft", model)
    middle = place(tmp_path, target)
    convert(middle, stored.plan, stored.tensors(), model, target)
    stored, _ = read_fitting(middle, model)
    convert(tmp_path / "back", stored.plan, stored.tensors(), model, "peft")
    same(model, plan, tensors, tmp_path / "back")


@pytest.mark.parametrize("source", TARGETS)
def test_peft_and_llama_cpp_load_what_was_converted(source: str, tmp_path: Path) -> None:
    from peft import PeftModel

    from tests.export.gguf_base import write_base
    from tests.export.libllama import llama

    model, plan, tensors = adapter("llama", DENSE)
    convert(place(tmp_path, source, "first"), plan, tensors, model, source)
    stored, _ = read_fitting(place(tmp_path, source, "first"), model)
    ids = torch.arange(3, 13).view(1, -1)
    wanted = load_adapter(place(tmp_path, source, "first"), tiny_model("llama")).eval()(ids).logits
    for target in ("peft", "vllm", "sglang"):
        convert(tmp_path / target, stored.plan, stored.tensors(), model, target)
        loaded = PeftModel.from_pretrained(tiny_model("llama"), str(tmp_path / target)).eval()
        torch.testing.assert_close(loaded(ids).logits, wanted, atol=2e-5, rtol=0)
    convert(tmp_path / "it.gguf", stored.plan, stored.tensors(), model, "gguf")
    write_base(tmp_path / "base.gguf", tiny_model("llama"))
    with llama(tmp_path / "base.gguf") as base:
        base.use(tmp_path / "it.gguf")
        torch.testing.assert_close(base.logits(ids[0].tolist()), wanted[0], atol=2e-5, rtol=0)


def test_an_alpha_of_llama_cpp_is_read(tmp_path: Path) -> None:
    """Other programs write an alpha, over the rank of each pair."""
    from gguf import GGUFType, GGUFWriter

    model, plan, tensors = adapter("llama", "spec s\ntarget down_proj\nshare x per module rank 4\n")
    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_type(GGUFType.ADAPTER)
    writer.add_float32("adapter.lora.alpha", 8.0)
    for i, site in enumerate(plan.sites):
        a, b = (tensors[plan.terms_of[site.path][0].tensors[role]] for role in "AB")
        writer.add_tensor(f"blk.{i}.ffn_down.weight.lora_a", a.numpy())
        writer.add_tensor(f"blk.{i}.ffn_down.weight.lora_b", (b.t() / 2).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    same(model, plan, tensors, tmp_path / "x.gguf")


EXPS = "blk.0.ffn_gate_exps.weight.lora_a"


@pytest.mark.parametrize(
    ("family", "shapes", "alpha", "code"),
    [
        ("llama", {"blk.0.ffn_down.weight.lora_b": (4,)}, 8.0, "BS613"),
        ("llama", {"blk.0.attn_q.weight.lora_b": (5, 2)}, 8.0, "BS613"),
        ("llama", {"blk.0.ffn_down.weight.lora_b": (1, 32, 2)}, 8.0, "BS613"),
        ("mixtral", {EXPS: (1, 2, 32)}, 8.0, "BS613"),
        ("mixtral", {EXPS: (2, 32)}, 8.0, "BS613"),
        ("llama", {"blk.0.ffn_down.weight.lora_b": (32, 2)}, [1.0, 2.0], "BS608"),
    ],
)
def test_a_damaged_file_of_llama_cpp_is_refused(
    family: str, shapes: dict[str, tuple[int, ...]], alpha: Any, code: str, tmp_path: Path
) -> None:
    from gguf import GGUFType, GGUFWriter

    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_type(GGUFType.ADAPTER)
    add = writer.add_array if isinstance(alpha, list) else writer.add_float32
    add("adapter.lora.alpha", alpha)
    for name, shape in shapes.items():
        writer.add_tensor(name, torch.zeros(shape).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(AdapterError, match=code):
        read_fitting(tmp_path / "x.gguf", tiny_model(family))


def header(tensors: int, *fields: bytes) -> bytes:
    """The start of a GGUF file, with the bytes behind the name of each field."""
    counts = struct.pack("<4sIQQ", b"GGUF", 3, tensors, len(fields))
    return counts + b"".join(struct.pack("<Qc", 1, b"k") + field for field in fields)


ARRAY = struct.pack("<I", 9)
TWICE = b"".join(
    struct.pack(f"<Q{len(name)}sIQQIQ", len(name), name, 2, 64, 64, 0, 0)
    for name in (b"blk.0.ffn_down.weight.lora_a", b"blk.0.ffn_down.weight.lora_b")
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (header(0, ARRAY + struct.pack("<IQ", 0, 2**16)), "promises more"),  # In full, 2**60.
        (header(2**16), "promises more"),
        (header(0, ARRAY + (ARRAY + struct.pack("<Q", 1)) * 2000), "nested too deep"),
        (header(2) + TWICE + bytes(64 * 64 * 4 + 32), "overlap"),
        (header(0) + bytes(128), "`general.type` is None"),
    ],
    ids=["array", "tensors", "nested", "overlapping", "no adapter"],
)
def test_a_hostile_file_of_llama_cpp_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(AdapterError, match=f"BS608.*{said}"):
        read_fitting(tmp_path / "x.gguf", tiny_model("llama"))


@pytest.mark.parametrize("target", [target for target in TARGETS if target != "gguf"])
def test_a_tensor_too_many_is_named(target: str, tmp_path: Path) -> None:
    model, plan, tensors = adapter("mixtral", EXPERTS)
    convert(tmp_path / "out", plan, tensors, model, target)
    file = tmp_path / "out" / "adapter_model.safetensors"
    values = load_file(file)
    key, value = next(iter(values.items()))
    for more in (key.replace("layers.0", "layers.77"), "strange.tensor"):
        save_file(values | {more: value.clone()}, file)
        with pytest.raises(AdapterError) as caught:
            read_fitting(tmp_path / "out", model)
        assert more.removeprefix("base_model.model.").rpartition(".lora")[0] in str(caught.value)


def test_a_row_that_drifts_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a reader takes a tensor otherwise than the writer, the module is named."""
    from bishare_dsl.export import experts, from_peft

    def drifted(factors: Any, *given: Any) -> Any:
        origins = experts.expand_experts(factors, *given)
        up, gate = (f"model.layers.0.mlp.experts.0.{kind}_proj" for kind in ("up", "gate"))
        factors[up], factors[gate] = factors[gate], factors[up]
        return origins

    monkeypatch.setattr(from_peft, "expand_experts", drifted)
    model, plan, tensors = adapter("mixtral", EXPERTS)
    with pytest.raises(AdapterError, match=r"BS607.*experts\.0\.(up|gate)_proj` differs"):
        convert(tmp_path / "out", plan, tensors, model, "sglang")
    assert not (tmp_path / "out").exists()


def test_what_no_spec_expresses_is_written_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT loads it, even if bishare does not."""
    from bishare_dsl.export import from_peft

    model, plan, tensors = adapter("llama", DENSE)
    monkeypatch.setattr(from_peft, "FACTOR", re.compile("(x)(y)(z)"))  # Factors become strange.
    found = convert(tmp_path / "out", plan, tensors, model, "peft")
    assert math.isnan(found.total_error)
    assert found.data()["compared"] is False
    assert [(p.code, p.severity) for p in found.warnings] == [("BS656", "warning")]
    assert load_file(tmp_path / "out" / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="BS656"):
        convert(tmp_path / "engine", plan, tensors, model, "vllm")
    assert not (tmp_path / "engine").exists()


def test_the_page_has_the_table() -> None:
    page = (ROOT / "docs" / "layouts.md").read_text("utf-8")
    assert {*re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)} == {*LAYOUTS} == {*TARGETS}


def test_two_names_that_are_one_in_peft_are_refused(tmp_path: Path) -> None:
    """PEFT takes the first of them, so that dW would depend on who reads."""
    model, plan, tensors = adapter("llama", DENSE)
    convert(tmp_path / "out", plan, tensors, model, "peft")
    file = tmp_path / "out" / "adapter_model.safetensors"
    values = load_file(file)
    name = next(iter(values))
    values[name.removeprefix("base_model.model.")] = values[name] * 3
    save_file(values, file)
    with pytest.raises(AdapterError, match=r"BS608.*is in it twice"):
        read_fitting(tmp_path / "out", model)


@pytest.mark.parametrize(
    ("architecture", "kind", "said"),
    [
        ("qwen2", "adapter", "`general.architecture` is qwen2, and the base needs llama"),
        ("llama", "model", "`general.type` is model, and the base needs adapter"),
    ],
)
def test_a_file_of_llama_cpp_for_another_family_is_refused(
    architecture: str, kind: str, said: str, tmp_path: Path
) -> None:
    """Its shapes are equal, but its rows have another order."""
    from gguf import GGUFReader, GGUFWriter

    model, plan, tensors = adapter("llama", DENSE)
    convert(tmp_path / "x.gguf", plan, tensors, model, "gguf")
    writer = GGUFWriter(tmp_path / "y.gguf", architecture)
    writer.add_type(kind)
    writer.add_float32("adapter.lora.alpha", 0.0)
    for tensor in GGUFReader(tmp_path / "x.gguf").tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(AdapterError, match=f"BS608.*{re.escape(said)}"):
        read_fitting(tmp_path / "y.gguf", model)


def test_one_of_another_program_is_read_as_an_adapter(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model, plan, tensors = adapter("llama", DENSE)
    model.save_pretrained(tmp_path / "base")
    convert(tmp_path / "x.gguf", plan, tensors, model, "gguf")
    words = ["convert", str(tmp_path / "x.gguf"), "--model", str(tmp_path / "base")]
    assert main([*words, "--for", "bishare", "--out", str(tmp_path / "ours")]) == 0
    same(model, plan, tensors, tmp_path / "ours")
    assert "share lora" in capsys.readouterr().out


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model, plan, tensors = adapter("llama", DENSE)
    model.save_pretrained(tmp_path / "base")
    convert(tmp_path / "peft", plan, tensors, model, "peft")
    places = [str(tmp_path / name) for name in ("peft", "base", "it.gguf")]
    words = ["convert", places[0], "--for", "gguf", "--model", places[1], "--out", places[2]]
    assert main([*words, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["compared"]
    assert data["worst_error"] < 1e-5
    same(model, plan, tensors, tmp_path / "it.gguf")
