"""Each writer of a name is held before each of its writes while every other writer runs to its end.

Whatever the moment, the folder is as if one had written after the other, and nothing is left beside it.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import sys
import threading

import pytest
import torch

from bishare_dsl import compile_spec, writing
from bishare_dsl.convert.export import export_adapter
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.folder.files import (
    add_to_library,
    names_in,
    read_adapter,
    save_adapter,
    save_library,
)
from bishare_dsl.testing.models import tiny_model

LIBRARY = """spec library
target q_proj, v_proj
share s per model rank 3 via SS(slice = leading)
share l per adapter, module rank 2
"""
ADAPTER = "spec s\ntarget q_proj\nshare l per module rank 2\n"
MODEL = compile_spec(LIBRARY, tiny_model("llama"))
PLAN = MODEL.bishare.plan
ALONE = compile_spec(ADAPTER, tiny_model("llama"))


def values(number, plan=PLAN):
    return {tensor.name: torch.full(tensor.shape, float(number)) for tensor in plan.tensors}


def member(library, own):
    """Return the tensors of a member: those that a library shares have its number."""
    return values(own) | {name: values(library)[name] for name in PLAN.common}


def of_library(folder, number):
    members = {name: member(number, number + i) for i, name in enumerate("ab")}
    save_library(folder, PLAN, members, LIBRARY, seed=3)


def merge(folder):
    with writing.new_folder(folder) as new:
        (new / "config.json").write_text("{}")
        (new / "model.safetensors").write_bytes(b"weights")


def export(folder):
    plan = ALONE.bishare.plan
    export_adapter(folder, plan, values(1, plan), ALONE, "peft")


WRITERS = {
    "adapter": lambda f: save_adapter(
        f, ALONE.bishare.plan, values(5, ALONE.bishare.plan), ADAPTER, seed=0
    ),
    "library": lambda f: of_library(f, 10),
    "add": lambda f: add_to_library(f, {"c": member(0, 7)}),
    "replace": lambda f: add_to_library(f, {"a": member(0, 8), "b": member(0, 9)}),
    "copy": lambda f: add_to_library(f.with_name("other"), {"c": member(0, 7)}, f),
    "merge": merge,
    "export": export,
}


def present(folder, what):
    """Make a folder that has a library, or nothing, and another library beside it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    of_library(folder / "other", 20)
    if what == "library":
        of_library(folder / "it", 0)
    return folder / "it"


def content(folder):
    """Return what a reader finds; fails where it finds a mixture."""
    assert {path.name for path in folder.parent.iterdir()} <= {"it", "other"}
    if not folder.exists():
        return None
    assert not [path for path in folder.rglob(".*") if path.name.startswith(".")]
    if names := names_in(folder):
        found = {name: read_adapter(f"{folder}#{name}").tensors() for name in names}
    elif (folder / "adapter_config.json").exists() and not (folder / "model.safetensors").exists():
        if b"BISHARE" not in (folder / "adapter_config.json").read_bytes():
            return sorted(path.name for path in folder.iterdir())
        found = {"": read_adapter(folder).tensors()}
    else:
        return sorted(path.name for path in folder.iterdir())
    text = repr(
        sorted((n, k, v.flatten()[0].item()) for n, ts in found.items() for k, v in ts.items())
    )
    return hashlib.sha256(text.encode()).hexdigest()


def run(write, folder):
    with contextlib.suppress(AdapterError, FileExistsError):
        write(folder)


_HOOK = []
_WRITING = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree"}


def _audit(event, arguments):
    if _HOOK and (
        event in _WRITING
        or (
            event == "open"
            and isinstance(arguments[2], int)
            and arguments[2] & (os.O_CREAT | os.O_WRONLY)
        )
        or event == "ctypes.dlsym"
    ):
        _HOOK[0](event)


sys.addaudithook(_audit)


def held(folder, first, second, at, monkeypatch):
    """Hold the first writer before a write of a number until the second ends or waits; False if it has fewer."""
    reached, waits, go = threading.Event(), threading.Event(), threading.Event()
    count, real = 0, fcntl.flock

    def hold(_):
        nonlocal count
        if threading.current_thread() is threads[0]:
            count += 1
            if count == at:
                reached.set()
                assert go.wait(20)

    def flock(file, how):
        if threading.current_thread() is threads[1]:
            try:
                return real(file, how | fcntl.LOCK_NB)
            except BlockingIOError:
                waits.set()
        return real(file, how)

    def of_second():
        run(WRITERS[second], folder)
        waits.set()

    def of_first():
        run(WRITERS[first], folder)
        reached.set()

    threads = [threading.Thread(target=of_first), threading.Thread(target=of_second)]
    monkeypatch.setattr(fcntl, "flock", flock)
    _HOOK[:] = [hold]
    try:
        threads[0].start()
        assert reached.wait(20)
        threads[1].start()
        assert waits.wait(20)
    finally:
        go.set()
        for thread in threads:
            thread.join(20)
        _HOOK.clear()
    return count >= at


def check(tmp_path, what, first, second, step, monkeypatch):
    allowed = []
    for order in ((first, second), (second, first)):
        folder = present(tmp_path / "serial", what)
        for name in order:
            run(WRITERS[name], folder)
        allowed.append(content(folder))
    at = 1
    while held(folder := present(tmp_path / "held", what), first, second, at, monkeypatch):
        assert content(folder) in allowed, f"{first} held before write {at}, {second} beside it"
        at += step
    refuses = what == "library" and first == "export"  # Before its first write.
    assert (at > 1) != refuses


PAIRS = [(a, b) for a in WRITERS for b in WRITERS]


@pytest.mark.parametrize("what", ["library", "nothing"])
@pytest.mark.parametrize(
    ("first", "second"),
    [("add", "library"), ("add", "replace"), ("adapter", "merge"), ("merge", "export")],
)
def test_two_writers_of_one_name(tmp_path, what, first, second, monkeypatch):
    """G1: a library was replaced while another process added to it, and all its members were lost."""
    check(tmp_path, what, first, second, 3, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("what", ["library", "nothing"])
@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_any_two_writers_of_one_name(tmp_path, what, first, second, monkeypatch):
    check(tmp_path, what, first, second, 1, monkeypatch)


class Killed(BaseException):
    """Stands for a kill."""


def test_a_member_is_not_lost_behind_a_later_success(tmp_path):
    """G19: killed between two members, and the next success made the second one unreadable."""
    at, ended = 1, False
    while not ended:
        folder, count = present(tmp_path / str(at), "library"), 0

        def die(_, at=at):
            nonlocal count
            count += 1
            if count == at:
                raise Killed

        _HOOK[:] = [die]
        try:
            WRITERS["replace"](folder)
            ended = True
        except Killed:
            pass
        finally:
            _HOOK.clear()
        add_to_library(folder, {"d": member(0, 3)})
        for name, before, after in (("a", 0, 8), ("b", 1, 9), ("d", 3, 3)):
            tensors = read_adapter(f"{folder}#{name}").tensors()
            own = {tensors[t].flatten()[0].item() for t in tensors if t not in PLAN.common}
            assert own in ({before}, {after}), (at, name)
        assert not [path.name for path in folder.rglob(".*.new")]
        at += 1
    assert at > 8


def test_a_library_is_not_copied_over_what_is_none(tmp_path):
    """G20: `fit --library LIB --out X` and `train --library` replaced any adapter in X, those of PEFT too."""
    of_library(tmp_path / "library", 0)
    WRITERS["adapter"](out := tmp_path / "adapter")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(AdapterError, match="BS615"):
        add_to_library(tmp_path / "library", {"c": member(0, 7)}, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_library_whose_files_are_links_is_copied_as_files(tmp_path):
    """As in the cache of the Hub, whose blobs may go."""
    snapshot, blobs = tmp_path / "repo" / "snapshots" / "1", tmp_path / "repo" / "blobs"
    of_library(tmp_path / "plain", 0)
    blobs.mkdir(parents=True)
    for number, path in enumerate(
        sorted(p for p in (tmp_path / "plain").rglob("*") if p.is_file())
    ):
        link = snapshot / path.relative_to(tmp_path / "plain")
        link.parent.mkdir(parents=True, exist_ok=True)
        path.rename(blobs / str(number))
        link.symlink_to(blobs / str(number))
    add_to_library(snapshot, {"c": member(0, 7)}, tmp_path / "out")
    shutil.rmtree(tmp_path / "repo")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_symlink()]
    assert {name: len(read_adapter(f"{tmp_path / 'out'}#{name}").tensors()) for name in "abc"}


def test_what_a_killed_writer_left_is_no_change_to_a_library(tmp_path, monkeypatch):
    """The one who began before it was killed may write: the config that he read is still there."""
    library = tmp_path / "library"
    of_library(library, 1)
    began = read_adapter(f"{library}#b").config
    replace = writing.replace_file

    def killed(path, content):
        if path.name == "adapter_config.json":
            raise KeyboardInterrupt
        replace(path, content)

    monkeypatch.setattr("bishare_dsl.folder.files.replace_file", killed)
    with pytest.raises(KeyboardInterrupt):
        add_to_library(library, {"b": member(1, 7)})
    monkeypatch.setattr("bishare_dsl.folder.files.replace_file", replace)
    assert list(library.glob(".adapter_config.json.*.new"))
    add_to_library(library, {"b": member(1, 9)}, began=began)
    found = read_adapter(f"{library}#b").tensors()
    assert all(torch.equal(found[name], tensor) for name, tensor in member(1, 9).items())
