"""Who shares what, as a folder says it to other readers: it is there, small, and what the spec gives."""

from __future__ import annotations

import json
import math
import zlib
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

import pytest
import torch

from bishare_dsl import parse_spec, plan_spec
from bishare_dsl.adapter.config import AdapterConfig
from bishare_dsl.adapter.files import pack, read_adapter, save_adapter
from bishare_dsl.adapter.initial import draw
from bishare_dsl.adapter.old_draws import draw_by_torch
from bishare_dsl.adapter.sharing import sharing_of
from bishare_dsl.models import preset
from bishare_dsl.resources import find_spec
from bishare_dsl.testing.models import tiny_model
from tests.adapter.test_files import CONFIG, TEXT, config_of, refused, saved


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saved(tmp_path / "adapter")
    return tmp_path / "adapter"


def rewrite(folder: Path, sharing: Any) -> None:
    config = config_of(folder)
    config["bishare"]["sharing"] = sharing
    (folder / CONFIG).write_text(json.dumps(config))


def test_it_has_every_tensor_and_every_term(folder: Path) -> None:
    stored = read_adapter(folder)
    sharing, plan = json.loads(stored.config.sharing or ""), stored.plan
    assert sharing["tensors"].keys() == plan.tensor.keys()
    assert {m["module"]: len(m["terms"]) for m in sharing["modules"]} == {
        path: len(terms) for path, terms in plan.terms_of.items()
    }
    [term] = [t for t in sharing["modules"][0]["terms"] if t["transform"] == "SS"]
    assert term["options"] == {"slice": "centre"}  # A default, which a reader cannot know.


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s["modules"].pop(),
        lambda s: s["modules"][0]["terms"][0].update(scale=2.0),
        lambda s: s["modules"][0]["terms"][0]["tensors"].update(A="x.layer_1.A"),
        lambda s: s["tensors"]["x.layer_0.A"].update(key="base_model.model.x"),
    ],
)
def test_one_that_its_spec_does_not_give_is_refused(folder: Path, change: Any) -> None:
    read_adapter(folder)  # That this one was right is remembered, and says nothing of the next.
    sharing = config_of(folder)["bishare"]["sharing"]
    change(sharing)
    rewrite(folder, sharing)
    refused(folder, "BS607", "`sharing` is not what its spec gives")


def test_a_folder_without_it_is_read(folder: Path) -> None:
    config = config_of(folder)
    del config["bishare"]["sharing"]
    (folder / CONFIG).write_text(json.dumps(config))
    assert read_adapter(folder).config.sharing is None


def test_peft_writes_it_and_refuses_another(tmp_path: Path) -> None:
    from peft import PeftModel

    import bishare_dsl.peft  # noqa: F401
    from bishare_dsl.diagnostics import AdapterError

    text, folder = TEXT.replace(" share", "\nshare"), tmp_path / "adapter"
    plan = plan_spec(parse_spec(text), tiny_model("llama"))
    save_adapter(folder, plan, draw(plan, 0), text, seed=0)
    model = PeftModel.from_pretrained(tiny_model("llama"), str(folder))
    model.save_pretrained(str(tmp_path / "again"))
    assert read_adapter(tmp_path / "again").config.sharing == read_adapter(folder).config.sharing
    sharing = config_of(folder)["bishare"]["sharing"]
    sharing["modules"].reverse()
    rewrite(folder, sharing)
    with pytest.raises(AdapterError, match="BS607"):
        PeftModel.from_pretrained(tiny_model("llama"), str(folder))


@pytest.mark.parametrize(("name", "most"), [("bishare_ke", 16_000), ("lora", 6_000)])
def test_a_long_one_is_packed(tmp_path: Path, name: str, most: int) -> None:
    plan = plan_spec(name, preset("llama-7b"))
    values = {tensor.name: torch.zeros(()).expand(tensor.shape) for tensor in plan.tensors}
    _, config, _ = pack(plan, values, find_spec(name).read_text(), seed=0)
    packed = json.loads(config.text())["bishare"]["sharing"]
    assert isinstance(packed, str)
    assert len(packed) <= most
    sharing = zlib.decompress(b64decode(packed)).decode()
    assert sharing == sharing_of(plan, config)
    assert AdapterConfig.of(json.loads(config.text())).sharing == sharing


@pytest.mark.parametrize(
    ("packed", "code"),
    [
        ("%", "BS604"),
        (b64encode(b"no zlib").decode(), "BS604"),
        (b64encode(zlib.compress(b"\xff")).decode(), "BS604"),
        (b64encode(zlib.compress(b"{")).decode(), "BS607"),
        (None, "BS607"),
    ],
)
def test_what_was_not_packed_is_refused(folder: Path, packed: str | None, code: str) -> None:
    rewrite(folder, packed)
    refused(folder, code)


def test_what_is_kept_of_a_config_nobody_changes(folder: Path) -> None:
    """Thousands of adapters have one config but for their tensors, which is kept once it was found right."""
    before = read_adapter(folder).config
    kept = before.model_copy(deep=True)
    for value in (v for _, v in before if isinstance(v, dict)):
        value.clear()
    after = read_adapter(folder).config
    assert after == kept
    assert after.versions
    assert after.base is before.base, "it was not read again"


def test_a_small_text_that_unpacks_to_a_large_one_is_refused(folder: Path) -> None:
    rewrite(folder, b64encode(zlib.compress(b" " * 2**27)).decode())
    refused(folder, "BS604")


def test_what_torch_drew_stays_torchs(tmp_path: Path) -> None:
    """What bishare 0.2 drew, and 0.3 saved, is loaded bit for bit and saved with its generator."""
    text = TEXT.replace("via SS", "via SS freeze A")
    plan = plan_spec(parse_spec(text), tiny_model("llama"))
    old = {
        name: draw_by_torch(plan.tensor[name], 0) if not plan.tensor[name].trainable else tensor
        for name, tensor in draw(plan, 0).items()
    }
    save_adapter(tmp_path, plan, old, text, seed=0)
    new = read_adapter(tmp_path)
    assert {drawn.generator for drawn in new.config.drawn.values()} == {"torch"}
    assert "x.layer_0.A" in new.config.drawn
    assert json.loads(new.config.sharing or "")["tensors"]["x.layer_0.A"]["draw"].keys() == {
        "torch"
    }
    for name, tensor in old.items():
        assert torch.equal(new.tensors()[name], tensor)


def test_what_is_drawn_is_said(tmp_path: Path) -> None:
    text = TEXT.replace("via SS", "via SS freeze A")
    plan = plan_spec(parse_spec(text), tiny_model("llama"))
    save_adapter(tmp_path, plan, draw(plan, 0), text, seed=0)
    sharing = json.loads(read_adapter(tmp_path).config.sharing or "")
    fan_in = plan.tensor["x.layer_0.A"].fan_in
    assert sharing["tensors"]["x.layer_0.A"] == {
        "shape": list(plan.tensor["x.layer_0.A"].shape),
        "dtype": "float32",
        "draw": {"uniform": [-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in)]},
    }
