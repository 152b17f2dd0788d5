"""Checkpoints that are damaged, runs that are killed while they begin, disks that are full."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from bishare_dsl.diagnostics import BishareError
from bishare_dsl.train import TrainError
from bishare_dsl.train import folder as folders
from tests.support.parts import quick
from tests.train.conftest import go_on
from tests.train.many.test_many import PLAIN, start, tensors

STEPS = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 9, "max_steps": 6}


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 0x40
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def add(path):
    (path.parent / "more").mkdir()
    (path.parent / "more" / path.name).touch()


DAMAGES = {
    "removed": Path.unlink,
    "cut": cut,
    "flipped": flip,
    "older": None,
    "joined by another": add,
}


@pytest.fixture(scope="module", params=["one", "several"])
def run(request, files, tmp_path_factory):
    """A finished run with three checkpoints, and where its last adapter is."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    rows, others = str(files / "rows.jsonl"), str(files / "others.jsonl")
    data = rows if request.param == "one" else {"long": rows, "short": others}
    start(PLAIN, data, folder, **STEPS)
    return folder, "" if request.param == "one" else "short"


def test_each_file_of_a_checkpoint_is_as_it_was_saved_or_is_refused(run, tmp_path):
    """Removed, cut, flipped, or from an older checkpoint: BS743 by name, an older one by the run's (F51)."""
    folder, _ = run
    last = folder / "checkpoint-6"
    names = {path.relative_to(last).as_posix() for path in last.rglob("*")}
    assert {"optimizer.pt", "scheduler.pt", "trainer_state.json", "seal.json"} <= names
    for name in names:
        for damage, act in DAMAGES.items():
            copy = tmp_path / "copy"
            shutil.copytree(folder, copy)
            damaged, older = copy / "checkpoint-6" / name, copy / "checkpoint-4" / name
            same = damaged.read_bytes() == older.read_bytes()
            shutil.copy(older, damaged) if act is None else act(damaged)
            if act is None and same:
                assert folders.find_checkpoint(copy).name == "checkpoint-6"
            else:
                with pytest.raises(TrainError, match="BS743"):
                    folders.find_checkpoint(copy / "checkpoint-6")
                assert folders.find_checkpoint(copy).name == "checkpoint-4", (name, damage)
            shutil.rmtree(copy)


def test_an_older_checkpoint_ends_as_the_run_did(run, tmp_path, capsys):
    folder, adapter = run
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    flip(copy / "checkpoint-6" / "optimizer.pt")
    record = folders.record_of(copy / "checkpoint-4")
    del record["digest"], record["starts"]  # Earlier versions recorded no starts.
    folders.seal(copy / "checkpoint-4", record)
    go_on(copy, quiet=False)
    assert "going on from checkpoint-4" in capsys.readouterr().err
    found, wanted = tensors(copy / adapter), tensors(folder / adapter)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
        OSError(28, "No space left on device"),
    ],
)
def test_a_disk_that_is_full_is_said_to_be(files, tmp_path, monkeypatch, error):
    """torch has errors of its own for that (F54)."""

    class Full:
        def __init__(self, *_):
            raise error

    monkeypatch.setattr("torch.serialization._open_zipfile_writer_file", Full)
    with pytest.raises(TrainError, match="BS747"):
        start(PLAIN, str(files / "rows.jsonl"), tmp_path / "it", **STEPS)


@pytest.mark.skipif(os.name == "nt", reason="limits of POSIX")
@pytest.mark.parametrize("several", quick([False, True], [False]))
def test_whatever_file_cannot_be_written_is_an_error_with_a_code(files, tmp_path, several):
    """No file may be longer than so many bytes; then the run goes on, or begins anew, and ends as any (F54)."""
    import resource

    rows = str(files / "rows.jsonl")
    data = {"a": rows, "b": rows} if several else rows
    start(PLAIN, data, tmp_path / "whole", **STEPS)
    adapter = "a" if several else ""
    wanted = tensors(tmp_path / "whole" / adapter)
    sizes = {p.stat().st_size for p in (tmp_path / "whole").rglob("*") if p.is_file()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    refused = []
    for number, size in enumerate(sorted(sizes)[:: max(len(sizes) // 3, 1)]):
        folder = tmp_path / str(number)
        resource.setrlimit(resource.RLIMIT_FSIZE, (max(size - 1, 300), hard))
        try:
            start(PLAIN, data, folder, **STEPS)
        except BishareError as error:
            refused += [problem.code for problem in error.problems]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        try:
            go_on(folder)
        except TrainError:
            start(PLAIN, data, folder, **STEPS)
        found = tensors(folder / adapter)
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert len(refused) > 1
    assert {*refused} <= {"BS747", "BS616"}


def test_the_folders_of_results_are_looked_at_before_anything_is_trained(
    files, tmp_path, monkeypatch
):
    """A file, or an adapter of another method, is in the way (F35)."""
    monkeypatch.setattr("bishare_dsl.train.run.load_base", lambda *_: pytest.fail("trains"))
    data = {"a": str(files / "rows.jsonl"), "b": str(files / "others.jsonl")}
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "b").touch()
    (tmp_path / "lora" / "b").mkdir(parents=True)
    (tmp_path / "lora" / "b" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    for name in ("file", "lora"):
        with pytest.raises(BishareError, match=f"BS740.*{name}/b"):
            start(PLAIN, data, tmp_path / name)
    (tmp_path / "library" / "library").mkdir(parents=True)
    (tmp_path / "library" / "library" / "adapters").touch()
    text = "spec s\ntarget q_proj\nshare x A per kind  B per adapter, kind rank 2"
    with pytest.raises(BishareError, match="BS615"):
        start(text, data, tmp_path / "library")
