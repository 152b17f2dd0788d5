"""A library: several adapters in one folder, which share tensors, and each of which is an adapter as any other."""

import io
import json
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bishare_dsl import load_adapter
from bishare_dsl.cli.main import main
from bishare_dsl.convert.effective import delta
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.folder.files import names_in, read_adapter
from bishare_dsl.testing.models import tiny_model
from tests.fit.conftest import write_trained

FAMILY = """spec family
target q_proj, down_proj
share halves     A per module  B per adapter, module  rank 4
share stretched  per layer  rank 2  via KE(size = 16)
share fixed      per module  rank 4  init B kaiming_normal  freeze A, B  gain rank init 1, out init 0
"""
NAMES = ("law", "maths", "code")
pytestmark = pytest.mark.filterwarnings("ignore::bishare_dsl.diagnostics.BishareWarning")


@pytest.fixture(scope="module")
def made(base, tmp_path_factory):
    """A folder with ``library``, of three adapters, and all that it was made of."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.chdir(folder)
        Path("family.share").write_text(FAMILY)
        for seed, name in enumerate(NAMES):
            spec = "spec g\ntarget q_proj, down_proj\nshare a per module rank 2\n"
            write_trained(base, folder / name, spec, seed)
        words = ("--spec", "family.share", "--out", "library", "--json", "--quiet")
        assert main(["fit", *NAMES, *words]) == 0
    (folder / "report.json").write_text(printed.getvalue())
    return folder


@pytest.fixture
def library(made, tmp_path, monkeypatch):
    """A copy of it, in the folder that one is in."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path / "library"


def dense(name):
    """All updates of an adapter, side by side."""
    stored = read_adapter(name)
    tensors = stored.tensors()
    return torch.cat([delta(stored.plan, tensors, site).flatten() for site in stored.plan.sites])


def test_each_name_is_an_adapter_with_the_error_that_was_told(library):
    told = json.loads(Path("report.json").read_text())["adapters"]
    assert tuple(told) == NAMES
    assert names_in(library) == tuple(sorted(NAMES))
    for name in NAMES:
        found, want = dense(f"library#{name}"), dense(name)
        error = float((found - want).norm() / want.norm())
        assert error == pytest.approx(told[name], rel=1e-3)
        assert error < 0.75


def test_shared_tensors_are_there_once_and_frozen_ones_never(library):
    adapters = [read_adapter(f"{library}#{name}") for name in NAMES]
    plan = adapters[0].plan
    assert all(adapter.plan is plan for adapter in adapters)
    tensors = [adapter.tensors() for adapter in adapters]
    trained = {t.name for t in plan.tensors if t.trainable}
    for name in plan.tensor:
        alike = torch.equal(tensors[0][name], tensors[1][name])
        assert alike == (name in plan.common)
    files = [load_file(path).values() for path in library.rglob("*.safetensors")]
    stored = sum(tensor.nbytes for tensors in files for tensor in tensors)
    once = sum(plan.tensor[name].size for name in plan.common & trained)
    own = sum(plan.tensor[name].size for name in trained - plan.common)
    assert own
    assert once
    assert stored == 4 * (once + 3 * own)


def test_commands_take_an_adapter_of_a_library(library, checkpoint, bishare):
    for words in (
        ("inspect", "library#law"),
        ("convert", "library#law", "--model", checkpoint, "--out", "exported"),
        ("merge", "library#law", "--model", checkpoint, "--out", "merged"),
        ("fit", "library#law", "--spec", "lora", "--out", "again"),
    ):
        code, _, err = bishare(*words)
        assert code == 0, err
    lora = load_adapter("exported", tiny_model("llama")).bishare
    for site in lora.plan.sites:
        want = delta(read_adapter("library#law").plan, read_adapter("library#law").tensors(), site)
        torch.testing.assert_close(
            delta(lora.plan, lora.tensors(), site), want, rtol=1e-4, atol=1e-5
        )


def test_an_adapter_of_a_library_is_trained_further(library, checkpoint, bishare):
    Path("rows.jsonl").write_text(json.dumps({"text": "a b c"}) + "\n")
    words = ["--model", checkpoint, "--data", "rows.jsonl", "--output_dir", "more"]
    words += ["--max_steps", 1]
    assert "BS678" in bishare("train", "library#lwa", *words)[2]
    code, _, err = bishare("train", "library#law", *words)
    assert code == 0, err
    before, after = read_adapter("library#law"), read_adapter("more")
    assert after.plan.digest == before.plan.digest
    assert not torch.equal(dense("more"), dense("library#law"))
    torch.testing.assert_close(dense("more"), dense("library#law"), rtol=0, atol=0.1)


@pytest.mark.parametrize(
    ("place", "code", "said"),
    [
        ("library", "BS676", "library#law"),
        ("library#lwa", "BS678", "did you mean `law`"),
        ("library#", "BS678", "`code`, `law`, `maths`"),
        ("law#x", "BS677", "law"),
        ("nowhere#law", "BS601", "nowhere"),
        ("library#../law", "BS678", "library"),
    ],
)
def test_a_place_that_is_none(place, code, said, library):
    with pytest.raises(AdapterError, match=code) as raised:
        read_adapter(place)
    assert said in str(raised.value)


def test_damage_is_found(library):
    own = library / "adapters" / "law.safetensors"
    content = own.read_bytes()
    own.write_bytes(content[:-1])
    with pytest.raises(AdapterError, match=r"BS608.*law\.safetensors"):
        read_adapter("library#law")
    read_adapter("library#maths")
    shutil.copy(library / "adapters" / "maths.safetensors", own)
    with pytest.raises(AdapterError, match="BS607"):
        read_adapter("library#law")
    own.unlink()
    with pytest.raises(AdapterError, match="BS606"):
        read_adapter("library#law")
    (library / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(AdapterError, match="BS608"):
        read_adapter("library#maths")


def test_what_nothing_tells_apart_is_one_adapter_nearest_to_all(library, bishare):
    Path("one.share").write_text("spec one\ntarget q_proj, down_proj\nshare a per module rank 6\n")
    code, _, err = bishare("fit", *NAMES, "--spec", "one.share", "--out", "one")
    assert code == 0
    assert "no key names `adapter`, so one adapter was fitted to all" in err
    mean = sum(dense(name) for name in NAMES) / 3
    assert (dense("one") - mean).norm() < 0.02 * mean.norm()
