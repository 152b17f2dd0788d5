"""The folder of a run: whether a run may begin in it or go on, and the record of what was asked.

| | |
|---|---|
| the adapter's files | once the run is finished, so that the folder is an adapter's |
| ``checkpoint-N/`` | transformers' Trainer's, with the adapter alone; ``digests.json`` seals it |
| ``run.json`` | what was asked, as a config takes it |
| ``trainer_state.json``, ``runs/`` | what was logged, and told to TensorBoard |

Several tasks have their adapters in folders of their names, or in a library.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BufferedIOBase, RawIOBase
from pathlib import Path, PurePosixPath
from typing import Any

from bishare_dsl.adapter.card import CARD
from bishare_dsl.adapter.contents import MEMBERS
from bishare_dsl.adapter.files import CONFIG, TENSORS, is_ours
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.train.errors import TrainError, translate_refusals
from bishare_dsl.writing import check_writable, discard, replace_file

RUN_FILE, STATE, DIGESTS = "run.json", "trainer_state.json", "digests.json"
LIBRARY = "library"
"""The folder in a run's of adapters that share tensors."""


def check_new(folder: Path, *, force: bool) -> None:
    """Check that a run may begin in a folder.

    Args:
        folder: that need not exist.
        force: whether an earlier run may be removed.

    Raises:
        TrainError: it holds a run (BS740), or other files of a run's names (BS741), or cannot be
            written (BS747).
    """
    with translate_refusals(folder):
        if (folder / RUN_FILE).is_file():
            with (folder / RUN_FILE).open("ab") as file:
                _lock(file, folder, force=force)
        elif (folder.exists() and not folder.is_dir()) or _written(folder):
            reason = "it is not empty, and holds no run of bishare"
            raise TrainError(codes.NOT_A_RUN(folder=folder, reason=reason))
        check_writable(folder)


@contextmanager
def hold(
    folder: Path,
    asked: Mapping[str, Any],
    resumed: Path | None,
    *,
    force: bool = False,
    earlier: Collection[str] = (),
) -> Iterator[None]:
    """Hold a folder for the one run that writes into it; after a kill nobody holds it.

    The checkpoints after ``resumed`` are removed: training makes them again. A run that begins first removes
    all that an earlier one has written, and then writes what was asked: a kill in between leaves the earlier
    run's record with what is left of it.

    Args:
        folder: made where it does not exist.
        asked: of the run that begins.
        resumed: the checkpoint that a run goes on from.
        force: whether an earlier run may be removed.
        earlier: the folders of that run's adapters.

    Raises:
        TrainError: another training is at work in it (BS741), or was since it was checked (BS740), or it
            cannot be written (BS747).
    """
    with translate_refusals(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / RUN_FILE).open("ab", buffering=0)  # Else closing it writes, and may fail.
    with file:
        _lock(file, folder, force=force or resumed is not None)
        with translate_refusals(folder):
            if resumed is not None:
                for path in checkpoints(folder):
                    if step_of(path) > step_of(resumed):
                        shutil.rmtree(path)
            else:
                for path in _written(folder)[::-1]:  # The last checkpoint first.
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                for name in earlier:
                    _remove_adapter(folder / name)
                file.truncate(0)
                content = json.dumps(asked, indent=2, ensure_ascii=False).encode()
                while content:
                    content = content[file.write(content) :]
        yield


def _lock(file: RawIOBase | BufferedIOBase, folder: Path, *, force: bool) -> None:
    """Take the record of a run for this process alone; Windows and some network folders have no such lock.

    Raises:
        TrainError: another process has it (BS741), or it is of a run that is not to be gone on with (BS740).
    """
    if os.name != "nt":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            reason = "another training is at work in it"
            help = "wait until it is through, or give another `--output_dir`"
            raise TrainError(codes.NOT_A_RUN(folder=folder, reason=reason, help=help)) from None
        except OSError:  # There is none here.
            pass
    if file.tell() and not force:
        help = f"`bishare train --resume {folder}` goes on with it, `--force` begins anew"
        raise TrainError(codes.RUN_EXISTS(folder=folder, help=help))


# Checkpoints ----------------------------------------------------------------------------------------------


def seal(checkpoint: Path, tasks: Sequence[Sequence[str]]) -> None:
    """Record each file of a checkpoint that is written, and of several tasks each with its plan's digest."""
    files = [
        path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name != DIGESTS
    ]
    digests = {path.relative_to(checkpoint).as_posix(): _digest(path) for path in files}
    record = {"step": step_of(checkpoint), "tasks": tasks, "files": digests}
    replace_file(checkpoint / DIGESTS, json.dumps(record, indent=1).encode())


def remove_old(folder: Path, keep: int | None, best: str | None) -> None:
    """Remove the oldest checkpoints until there are ``keep``: never the last one, nor the best."""
    found = checkpoints(folder)
    spared = [path for path in found[:-1] if path.name != Path(best or "").name]
    for path in spared[: max(len(found) - keep, 0) if keep else 0]:
        discard(path)


def keep_only(folder: Path, best: str) -> None:
    """Remove all checkpoints but the best, when a run that keeps one is through."""
    for path in checkpoints(folder):
        if path.name != Path(best).name:
            discard(path)


def fault_of(checkpoint: Path) -> str | None:
    """Return why a run cannot go on from a checkpoint: it was not sealed, or is not as it was then."""
    try:
        record = json.loads((checkpoint / DIGESTS).read_bytes())
        files, step, _ = dict(record["files"]), record["step"], [*record["tasks"]]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return "it was not saved to its end"
    if step != step_of(checkpoint):
        return f"it is that of step {step}"
    for name, digest in files.items():
        path = checkpoint / name
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            return f"its {DIGESTS} names a file outside of it"
        if not path.is_file():
            return f"`{name}` is missing"
        try:
            same = _digest(path) == digest
        except OSError:
            return f"`{name}` cannot be read"
        if not same:
            return f"`{name}` is not as it was saved"
    needed = {STATE} | ({"model.safetensors"} if record["tasks"] else {CONFIG, TENSORS})
    return None if needed <= files.keys() else "files of it are missing"


def tasks_of(checkpoint: Path) -> list[list[str]]:
    """Return the name and the plan's digest of each of several tasks of a checkpoint; none if it has one."""
    found: list[list[str]] = json.loads((checkpoint / DIGESTS).read_bytes())["tasks"]
    return found


def find_checkpoint(path: Path) -> Path:
    """Find the checkpoint to go on from: the last whole one in the folder of a run, or the one that is named.

    Raises:
        TrainError: there is none (BS742), or it is not whole (BS743).
    """
    if is_checkpoint(path):
        if fault := fault_of(path):
            raise TrainError(codes.BROKEN_CHECKPOINT(folder=path, reason=fault))
        return path
    reason = f"`{path}` has none that is whole"
    for found in reversed(checkpoints(path)):
        if (fault := fault_of(found)) is None:
            return found
        reason += f"; `{found.name}`: {fault}"
    help = "`--force` begins anew; `--save_steps N` saves a checkpoint every N steps"
    raise TrainError(codes.NO_CHECKPOINT(reason=reason, help=help))


def checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints in a run's folder, oldest first."""
    return sorted(filter(is_checkpoint, folder.glob("checkpoint-*")), key=step_of)


def is_checkpoint(path: Path) -> bool:
    """Tell whether a path is called as a checkpoint is."""
    return re.fullmatch(r"checkpoint-\d+", path.name) is not None


def step_of(checkpoint: Path) -> int:
    """Return how many steps are done in a checkpoint."""
    return int(checkpoint.name.partition("-")[2])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _written(folder: Path) -> list[Path]:
    """Find what a run has written into a folder, but for what was asked."""
    named = (folder / name for name in (TENSORS, CONFIG, STATE))
    return [*(path for path in named if path.exists()), *checkpoints(folder)]


def _remove_adapter(folder: Path) -> None:
    """Remove an adapter or a library of ours, and its folder if nothing else is in it."""
    if not is_ours(folder):
        return
    for name in (CONFIG, TENSORS, CARD, MEMBERS):
        if os.path.lexists(folder / name):
            discard(folder / name)
    if not any(folder.iterdir()):
        folder.rmdir()
