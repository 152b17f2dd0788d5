import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from bishare_dsl.train import TrainError
from bishare_dsl.train.checkpoint import (
    MANIFEST,
    STATE,
    STATE_TENSORS,
    TRAINER,
    checkpoints,
    name_of,
    read_checkpoint,
    rotate,
    tidy,
    write_state,
)
from bishare_dsl.writing import new_folder, remove_folder


def save(folder, step, content="first"):
    with new_folder(folder / name_of(step)) as new:
        (new / TRAINER).write_text("{}")
        write_state(new, {"content": content}, step, {"seed": 0})


def test_a_checkpoint_is_read_as_it_was_written(tmp_path):
    save(tmp_path, 3)
    found = read_checkpoint(tmp_path / "checkpoint-3")
    assert (found.step, found.run, found.state) == (3, {"seed": 0}, {"content": "first"})


def test_in_the_order_of_steps(tmp_path):
    for step in (10, 9, 100):
        save(tmp_path, step)
    (tmp_path / "checkpoint-final").mkdir()
    (tmp_path / ".checkpoint-200.new").mkdir()
    names = [path.name for path in checkpoints(tmp_path)]
    assert names == ["checkpoint-9", "checkpoint-10", "checkpoint-100"]
    assert checkpoints(tmp_path / "nowhere") == []


@pytest.mark.parametrize("name", [TRAINER, STATE, STATE_TENSORS])
@pytest.mark.parametrize("how", ["cut", "changed", "missing"])
def test_a_file_that_is_not_as_it_was_saved(tmp_path, name, how):
    save(tmp_path, 1)
    path = tmp_path / "checkpoint-1" / name
    content = path.read_bytes()
    path.unlink()
    if how != "missing":
        path.write_bytes(content[:-1] if how == "cut" else bytes(len(content)))
    with pytest.raises(TrainError, match=rf"BS743.*{name}"):
        read_checkpoint(tmp_path / "checkpoint-1")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1, "files": 3}', '{"format": 99}'])
def test_a_manifest_that_is_none(tmp_path, text):
    save(tmp_path, 1)
    (tmp_path / "checkpoint-1" / MANIFEST).write_text(text)
    with pytest.raises(TrainError, match="BS743"):
        read_checkpoint(tmp_path / "checkpoint-1")


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(TrainError, match="BS742"):
        read_checkpoint(tmp_path)
    (tmp_path / "checkpoint-5").mkdir()
    with pytest.raises(TrainError, match="BS743"):
        read_checkpoint(tmp_path / "checkpoint-5")


def test_an_error_leaves_what_was_there(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(RuntimeError), new_folder(tmp_path / "checkpoint-1"):
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert read_checkpoint(tmp_path / "checkpoint-1").state == {"content": "first"}


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [(None, None, [1, 2, 3, 4]), (0, None, [1, 2, 3, 4]), (2, None, [3, 4]), (1, 2, [2, 4]),
     (2, 1, [1, 4]), (3, 1, [1, 3, 4]), (2, 4, [3, 4]), (9, 1, [1, 2, 3, 4])],
)  # fmt: skip
def test_the_oldest_go_and_the_best_stays(tmp_path, keep, best, left):
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    rotate(tmp_path, keep, best and tmp_path / name_of(best))
    assert [path.name for path in checkpoints(tmp_path)] == [name_of(step) for step in left]
    assert len(list(tmp_path.iterdir())) == len(left)


def in_a_child_that_dies(action, at):
    """Run something in a child that is killed at its ``at``-th durable call; whether it was."""
    if (pid := os.fork()) == 0:
        left = at

        def counted(call):
            def counting(*arguments, **keywords):
                nonlocal left
                for what in (lambda: None, lambda: call(*arguments, **keywords)):
                    result = what()
                    left -= 1
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                return result

            return counting

        os.fsync, shutil.rmtree = counted(os.fsync), counted(shutil.rmtree)
        Path.rename, Path.write_bytes = counted(Path.rename), counted(Path.write_bytes)
        try:
            action()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("what", ["a new one", "the same again", "less of them"])
def test_a_kill_at_any_moment_leaves_whole_ones(tmp_path, what):
    """`test_kill` does it to real runs, now and then; here it is every moment there is."""

    def action():
        if what == "less of them":
            rotate(folder, 1, None)
        else:
            save(folder, 3 if what == "a new one" else 2, "second")

    at, killed = 1, True
    while killed:
        folder = tmp_path / str(at)
        for step in (1, 2):
            save(folder, step)
        killed = in_a_child_that_dies(action, at)
        tidy(folder)
        found = [read_checkpoint(path) for path in checkpoints(folder)]
        contents = {checkpoint.step: checkpoint.state["content"] for checkpoint in found}
        assert set(contents) >= ({2} if what == "less of them" else {1, 2})
        assert contents[2] == "first" or what == "the same again"
        assert not list(folder.glob(".*"))
        at += 1
    assert at > 3
    assert (
        contents
        == {
            "a new one": {1: "first", 2: "first", 3: "second"},
            "the same again": {1: "first", 2: "second"},
            "less of them": {2: "first"},
        }[what]
    )


def test_removing(tmp_path):
    save(tmp_path, 1)
    remove_folder(tmp_path / "checkpoint-1")
    assert not list(tmp_path.iterdir())


def test_nothing_in_it_is_run(tmp_path):
    """JSON and safetensors are all there is: no pickle, whatever its name."""
    save(tmp_path, 1)
    for path in (tmp_path / "checkpoint-1").iterdir():
        if path.suffix == ".json":
            json.loads(path.read_text())
        else:
            assert path.suffix == ".safetensors"
            assert path.read_bytes()[8:9] == b"{"
