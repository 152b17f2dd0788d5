"""A kill at any moment leaves all of the old files or all of the new ones."""

import itertools
import multiprocessing
import os
import random
import signal
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from bishare_dsl import parse_spec, plan_spec, writing
from bishare_dsl.folder.files import read_adapter, save_adapter
from bishare_dsl.initial.values import draw
from bishare_dsl.models import preset
from bishare_dsl.writing import ANY, new_folder, replace_file

TEXTS = [
    f"spec version_{n} target q_proj share s where layer in 0..1 per layer rank {n + 1}"
    for n in range(3)
]


class Killed(BaseException):
    """Stands for a SIGKILL: nothing below may catch it and go on."""


@contextmanager
def killed_at(step, monkeypatch):
    """Die at the `step`-th thing that is done to the disk; a write dies when half is written."""
    done = []

    def count(name):
        done.append(name)
        if len(done) == step:
            raise Killed

    def write(path, content):
        path.write_bytes(content[: len(content) // 2])
        count("half")
        path.write_bytes(content)
        count("write")

    def replace(source, target):
        count("replace")
        real_replace(source, target)
        count("replaced")

    real_replace, real_sync = os.replace, writing._sync
    with monkeypatch.context() as patch:
        patch.setattr(writing, "_write", write)
        patch.setattr(os, "replace", replace)
        patch.setattr(writing, "_sync", lambda folder: (count("sync"), real_sync(folder)))
        yield done


@pytest.fixture(scope="module")
def plans():
    return [plan_spec(parse_spec(text), preset("smollm2-135m")) for text in TEXTS]


def save(folder, plans, version):
    save_adapter(folder, plans[version], draw(plans[version], 0), TEXTS[version], seed=version)


def version_in(folder, plans):
    """Which version a folder holds; fails where it is none of them, or a mixture."""
    stored = read_adapter(folder)
    version = stored.config.seed
    assert stored.spec_text == TEXTS[version]
    assert stored.plan == plans[version]
    want = draw(plans[version], 0)
    assert all(torch.equal(want[name], found) for name, found in stored.tensors().items())
    return version


def steps_of_a_save(folder, plans, monkeypatch):
    save(folder, plans, 0)
    with killed_at(0, monkeypatch) as done:
        save(folder, plans, 1)
    return list(done)


def test_a_kill_at_every_step_leaves_the_old_or_the_new(tmp_path, plans, monkeypatch):
    steps = steps_of_a_save(tmp_path / "count", plans, monkeypatch)
    # The config beside the old one; the tensors; the config in its place; the card.
    assert steps.count("half") == 4
    assert steps.count("replace") == 4
    seen = []
    for step in range(1, len(steps) + 1):
        folder = tmp_path / str(step)
        save(folder, plans, 0)
        with killed_at(step, monkeypatch), pytest.raises(Killed):
            save(folder, plans, 1)
        seen.append(version_in(folder, plans))
        # What is left behind does not stop the next save, and is gone after it.
        save(folder, plans, 2)
        assert version_in(folder, plans) == 2
        assert not list(folder.glob("*.new"))
    assert seen == sorted(seen), "once new, never old again"
    assert set(seen) == {0, 1}


@pytest.mark.long
def test_two_kills_one_after_the_other(tmp_path, plans, monkeypatch):
    # The second save may find the config of another adapter than the tensors are of.
    steps = steps_of_a_save(tmp_path / "count", plans, monkeypatch)
    numbers = range(1, len(steps) + 1)
    pairs = random.Random(0).sample(list(itertools.product(numbers, numbers)), 60)
    for number, (first, second) in enumerate(pairs):
        folder = tmp_path / str(number)
        save(folder, plans, 0)
        with killed_at(first, monkeypatch), pytest.raises(Killed):
            save(folder, plans, 1)
        before = version_in(folder, plans)
        with killed_at(second, monkeypatch), pytest.raises(Killed):
            save(folder, plans, 2)
        assert version_in(folder, plans) in (before, 2)


# One file, one folder --------------------------------------------------------------------------------


def test_a_file_is_replaced_and_keeps_its_mode(tmp_path):
    path = tmp_path / "script"
    path.write_text("old")
    path.chmod(0o750)
    replace_file(path, b"new")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o750)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_replaced_is_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="No space left"):
            replace_file(tmp_path / "file", b"new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def full_disk(*_):
    raise OSError(28, "No space left on device")


def test_a_folder_that_cannot_be_put_in_its_place_leaves_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "it").mkdir()
    (tmp_path / "it" / "old").touch()
    real = Path.rename

    def rename(path, target):
        return full_disk() if path.suffix == ".new" else real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr(writing, "_rename", lambda *_: False)  # As on a system without it.
    with pytest.raises(OSError, match="No space left"), new_folder(tmp_path / "it", seen=ANY):
        pass
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["it", "it/old"]


def _replace_and_die(folder, number):
    """Replace a folder, and be killed before the system call of a number that changes a name."""
    left = itertools.count(1)

    def counted(call):
        def wrapped(*arguments, **keywords):
            if next(left) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **keywords)

        return wrapped

    writing._rename = counted(writing._rename)
    writing.discard = counted(writing.discard)
    Path.rename = counted(Path.rename)
    with new_folder(folder, seen=ANY) as new:
        (new / "content").write_text("new")


def test_a_killed_writer_leaves_the_old_folder_or_the_new_one(tmp_path):
    """At each change of a name (F53), and the next writer removes what was left."""
    context, folder, seen = multiprocessing.get_context("fork"), tmp_path / "it", []
    for number in itertools.count(1):
        folder.mkdir(exist_ok=True)
        (folder / "content").write_text("old")
        process = context.Process(target=_replace_and_die, args=(folder, number))
        process.start()
        process.join()
        seen.append((folder / "content").read_text())
        if process.exitcode == 0:
            break
        with new_folder(folder, seen=ANY) as new:
            (new / "content").touch()
        assert [path.name for path in tmp_path.iterdir()] == ["it"]
    assert seen == ["old", "new", "new"]


def test_a_second_writer_waits_for_the_first(tmp_path):
    order = []

    def second():
        with new_folder(tmp_path / "it", seen=ANY) as new:
            order.append("second")
            (new / "b").touch()

    with new_folder(tmp_path / "it") as first:
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        order.append("first")
        (first / "a").touch()
    thread.join()
    assert order == ["first", "second"]
    assert [path.name for path in tmp_path.rglob("*")] == ["it", "b"]


@pytest.mark.parametrize("by_system", [True, False])
def test_what_appears_meanwhile_is_not_replaced(tmp_path, by_system, monkeypatch):
    """G20: a folder that appeared while another was written was deleted."""
    if not by_system:
        monkeypatch.setattr(writing, "_rename", lambda *_: False)

    def write():
        with new_folder(tmp_path / "it"):
            (tmp_path / "it").mkdir()
            (tmp_path / "it" / "notes").write_text("precious")

    with pytest.raises(OSError, match=r"appeared|not empty"):
        write()
    assert (tmp_path / "it" / "notes").read_text() == "precious"
    (tmp_path / "file").write_text("precious")
    with pytest.raises(FileExistsError):
        writing.new_file(tmp_path / "file", b"other")
    assert (tmp_path / "file").read_text() == "precious"
    with new_folder(tmp_path / "empty") as new:
        (tmp_path / "empty").mkdir()
        (new / "a").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "it"]


def test_what_a_killed_writer_of_a_file_left_is_removed(tmp_path):
    """G39: `convert` to a GGUF file left these for ever."""
    (tmp_path / ".a.gguf.01234567.new").touch()
    (tmp_path / ".a.gguf.lock").touch()
    writing.new_file(tmp_path / "a.gguf", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


# Several processes -----------------------------------------------------------------------------------


def _save_often(folder, plans, version):
    for _ in range(25):
        save(folder, plans, version)


def test_processes_that_save_into_one_folder_take_turns(tmp_path, plans):
    folder = tmp_path / "adapter"
    save(folder, plans, 0)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_save_often, args=(folder, plans, v)) for v in (1, 2, 0)]
    for process in processes:
        process.start()
    seen = set()
    while any(process.is_alive() for process in processes):
        # A reader beside them never sees a mixture, or nothing.
        seen.add(version_in(folder, plans))
    for process in processes:
        process.join()
        assert process.exitcode == 0
    version_in(folder, plans)
    assert len(seen) > 1
    assert not list(folder.glob("*.new"))


@pytest.mark.parametrize("moment", ["after the trial is made", "while it is removed"])
def test_ctrl_c_in_the_check_of_a_folder_leaves_nothing(tmp_path, monkeypatch, moment):
    method = {"after the trial is made": "mkdir", "while it is removed": "rmdir"}[moment]
    real, calls = getattr(Path, method), []

    def interrupted(path, *args, **more):
        calls.append(path)
        if method == "mkdir":
            real(path, *args, **more)
        if len(calls) == 1:
            raise KeyboardInterrupt
        if method == "rmdir":
            real(path)

    monkeypatch.setattr(Path, method, interrupted)
    with pytest.raises(KeyboardInterrupt):
        writing.check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []
