"""A folder of adapters, all in memory at once."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bishare_dsl import compile_spec, load_adapter, load_adapters, parse_spec
from bishare_dsl.adapter.replan import plan_of_text
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.serve.transformers import adapters as module
from bishare_dsl.testing.checks import randomize
from bishare_dsl.testing.models import tiny_model

SPECS = {
    "a": "spec a target q_proj, up_proj share local per module rank 2 share all per model rank 3 via SS",
    "b": "spec b target q_proj, o_proj share local per module rank 1",
}
IDS = torch.randint(3, 64, (4, 7), generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("a1", "a2", "a3", "b1", "b2")):
        model: Any = compile_spec(parse_spec(SPECS[name[0]]), tiny_model("llama"), seed=seed)
        randomize(model, seed)
        model.bishare.save_pretrained(found / name)
    (found / "notes").mkdir()
    (found / "README.md").write_text("Not an adapter.")
    return found


@torch.no_grad()
def test_all_of_them(folder: Path) -> None:
    model: Any = tiny_model("llama")
    assert load_adapters(folder, model) is model
    assert model.bishare.adapters == ("a1", "a2", "a3", "b1", "b2")
    assert model.bishare.active_adapter == "a1"
    for name in model.bishare.adapters:
        want = load_adapter(folder / name, tiny_model("llama"))(IDS).logits
        torch.testing.assert_close(model(IDS, adapter_names=[name] * 4).logits, want)
        model.bishare.set_adapter(name)
        assert torch.equal(model(IDS).logits, want)


def test_beside_one_that_runs(folder: Path) -> None:
    model: Any = compile_spec(parse_spec(SPECS["b"]), tiny_model("llama"), name="own")
    load_adapters(folder, model)
    assert model.bishare.active_adapter == "own"
    assert len(model.bishare.adapters) == 6


def test_a_plan_is_parsed_and_compiled_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def compile_plan(model: Any, plan: Any) -> Any:
        compiled.append(plan.spec)
        return real(model, plan)

    real = module.compile_plan
    monkeypatch.setattr(module, "compile_plan", compile_plan)
    plan_of_text.cache_clear()
    model: Any = tiny_model("llama")
    load_adapters(folder, model)
    assert compiled == ["b"]  # That of the first adapter is in use.
    assert plan_of_text.cache_info().misses == 2
    for name in ("a3", "b2", "a1", "b1"):
        model.bishare.set_adapter(name)
    assert compiled == ["b"]


def test_one_that_waits_has_no_modules_and_no_gradients(folder: Path) -> None:
    model: Any = tiny_model("llama")
    load_adapters(folder, model)
    adapters = model.bishare._adapters
    assert [name for name in adapters if adapters[name].handle is not None] == ["a1"]
    with torch.no_grad():
        model(IDS, adapter_names=["a2", "a3", "b1", "b2"])
    assert [name for name in adapters if adapters[name].handle is not None] == ["a1"]
    assert not any(t.requires_grad for t in adapters["a2"].slot.tensors().values())


def test_bytes_are_counted(folder: Path, tmp_path: Path) -> None:
    for i in range(40):
        shutil.copytree(folder / "a2", tmp_path / f"copy{i:02}")
    model: Any = tiny_model("llama")
    load_adapters(tmp_path, model)
    size = sum(t.numel() * 4 for t in model.bishare.tensors().values())
    held = sum(bank.nbytes for bank in model.bishare._adapters.banks)
    rounding = 64 + 16 * len(model.bishare.plan.tensors)
    assert 39 * size <= held <= 39 * (size + rounding)
    per_adapter = [
        sys.getsizeof(resident) + sys.getsizeof(resident.slot) + sys.getsizeof(resident.name)
        for resident in (model.bishare._adapters[name] for name in model.bishare.adapters)
    ]
    assert max(per_adapter) < 500
    adapters = [model.bishare._adapters[name] for name in model.bishare.adapters]
    assert len({id(resident.plan) for resident in adapters}) == 1
    assert len({id(resident.spec_text) for resident in adapters}) == 1


@pytest.mark.parametrize("first", [True, False], ids=["to a base", "beside another"])
def test_one_that_is_damaged(folder: Path, tmp_path: Path, first: bool) -> None:
    shutil.copytree(folder, tmp_path / "all")
    (tmp_path / "all" / "b2" / "adapter.safetensors").write_bytes(b"no")
    model: Any = tiny_model("llama")
    if not first:
        compile_spec(parse_spec(SPECS["a"]), model, name="own")
    with pytest.raises(AdapterError, match=r"b2"):
        load_adapters(tmp_path / "all", model)
    if first:
        assert not hasattr(model, "bishare")
    else:
        assert model.bishare.adapters == ("own",)
        assert not model.bishare._adapters.banks or not model.bishare._adapters.banks[0].nbytes


def test_a_name_that_is_in_use(folder: Path) -> None:
    model: Any = compile_spec(parse_spec(SPECS["a"]), tiny_model("llama"), name="a3")
    with pytest.raises(AdapterError, match="BS641"):
        load_adapters(folder, model)
    assert model.bishare.adapters == ("a3",)


def test_a_folder_without_any(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="BS675"):
        load_adapters(tmp_path, tiny_model("llama"))


def test_a_bar_is_shown_on_a_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load_adapters(folder, tiny_model("llama"))
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal.
    load_adapters(folder, tiny_model("llama"))
    assert "loading adapters" in capsys.readouterr().err
    load_adapters(folder, tiny_model("llama"), progress=False)
    assert capsys.readouterr().err == ""
