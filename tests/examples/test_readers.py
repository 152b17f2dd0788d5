"""The readers of `examples`, which know neither bishare nor torch, read all of `conformance`, and that is what we make."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bishare_dsl.adapter.config import AdapterConfig
from bishare_dsl.transforms import package_of, transform_kind, transform_names

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "conformance"
SCHEMA = json.loads((ROOT / "docs" / "format.schema.json").read_text("utf-8"))
# Other tests register their own.
OURS = {n for n in transform_names() if package_of(transform_kind(n)) == "bishare_dsl"}
pytestmark = pytest.mark.filterwarnings("ignore::bishare_dsl.diagnostics.BishareWarning")


def imported(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKE = imported(FOLDER / "make.py")
READER = imported(ROOT / "examples" / "reader.py")
EXPECTED = sorted(FOLDER.glob("*/expected*.safetensors"))


def near(found: Any, expected: torch.Tensor) -> None:
    wanted = expected.double().numpy()
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("path", EXPECTED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_numpy_alone_reads_it(path: Path) -> None:
    updates, full = READER.read(path.parent, path.stem.partition("-")[2] or None)
    expected = load_file(path)
    places = {place.removesuffix(".x").removesuffix(".y") for place in expected}
    assert places == {*updates, *full}
    for place, value in (updates | full).items():
        if callable(value):
            rows = expected[f"{place}.x"].double().numpy()
            near(np.stack([value(x) @ x for x in rows]), expected[f"{place}.y"])
        else:
            near(value, expected[place])


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_javascript_alone_reads_them() -> None:
    command = ["node", str(Path(__file__).with_name("read.mjs")), str(FOLDER)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {(row["folder"], row["file"]) for row in rows} == {
        (path.parent.name, path.name) for path in EXPECTED
    }
    for row in rows:
        assert row["worst"] is not None, row
        assert row["worst"] <= 1e-5, row
        assert not row["left"], row


def test_neither_imports_torch_or_bishare() -> None:
    code = "import sys; sys.path.insert(0, 'examples'); import reader; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not {"torch", "bishare_dsl", "safetensors"} & {*done.stdout.split()}
    text = (ROOT / "examples" / "reader.mjs").read_text("utf-8")
    assert [line for line in text.splitlines() if "import" in line and "from '" in line] == []


@pytest.mark.parametrize("name", MAKE.ADAPTERS)
def test_it_is_what_the_script_makes(name: str, tmp_path: Path) -> None:
    MAKE.make(tmp_path, name)
    files = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {p.relative_to(FOLDER) for p in (FOLDER / name).rglob("*") if p.is_file()}
    for file in files:
        if file.suffix == ".safetensors":
            here, there = load_file(tmp_path / file), load_file(FOLDER / file)
            assert here.keys() == there.keys()
            for key, value in here.items():
                torch.testing.assert_close(value, there[key])
    here, there = (
        json.loads((p / name / "adapter_config.json").read_text()) for p in (tmp_path, FOLDER)
    )
    one, other = (
        AdapterConfig.of(config).model_dump(exclude={"versions"}) for config in (here, there)
    )
    assert one == other


def test_every_transform_is_in_one() -> None:
    used = {
        term["transform"]
        for path in FOLDER.glob("*/adapter_config.json")
        for module in unpacked(path)["bishare"]["sharing"]["modules"]
        for term in module["terms"]
    }
    assert used == OURS


def test_the_page_has_all_of_them_and_its_example_keeps_to_the_schema() -> None:
    page = (ROOT / "docs" / "format.md").read_text("utf-8")
    assert not [name for name in OURS if f"- **{name}**" not in page]
    example = page.partition("```json\n")[2].partition("```")[0]
    config = {"peft_type": "BISHARE", "seed": 0, "bishare": {"sharing": json.loads(example)}}
    jsonschema.validate(config, SCHEMA)


def unpacked(path: Path) -> Any:
    """Return a config with `sharing` as an object."""
    config = json.loads(path.read_text("utf-8"))
    config["bishare"]["sharing"] = json.loads(AdapterConfig.of(config).sharing or "")
    return config


@pytest.mark.parametrize("name", MAKE.ADAPTERS)
def test_it_keeps_to_the_schema(name: str) -> None:
    jsonschema.validate(unpacked(FOLDER / name / "adapter_config.json"), SCHEMA)


@pytest.mark.parametrize(
    "change",
    [
        lambda sharing: sharing.update(format=2),
        lambda sharing: sharing["modules"][0].pop("shape"),
        lambda sharing: sharing["modules"][0]["terms"][0].update(scale="2"),
        lambda sharing: next(iter(sharing["tensors"].values())).update(draw={"cauchy": 1}),
    ],
)
def test_the_schema_refuses(change: Any) -> None:
    config = unpacked(FOLDER / "identity" / "adapter_config.json")
    change(config["bishare"]["sharing"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config, SCHEMA)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.update(format=2), "format"),
        (lambda s: s["modules"][0]["terms"][0].update(transform="Fold"), "the transform Fold"),
        (lambda s: s["tensors"]["s.A"].update(draw={"torch": {"normal": 1}}), "torch"),
        (
            lambda s: s["tensors"].update({"s.A": {"shape": [2, 48], "base": {"svd": 1}}}),
            "a start from",
        ),
    ],
)
def test_a_reader_refuses_what_it_does_not_know(change: Any, says: str, tmp_path: Path) -> None:
    shutil.copytree(FOLDER / "random_basis", folder := tmp_path / "adapter")
    config = unpacked(folder / "adapter_config.json")
    change(config["bishare"]["sharing"])
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit, match=f"does not know: {says}"):
        READER.read(folder)


def test_the_folders_are_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 1_500_000
