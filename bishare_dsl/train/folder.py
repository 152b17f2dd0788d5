"""The folder of a run: its checkpoints, its lock and the record of its arguments.

| | |
|---|---|
| the adapter's files | written at the end of the run |
| ``checkpoint-N/`` | written by transformers' Trainer, with only the adapter; sealed by ``digests.json`` |
| ``run.json`` | the arguments, as in a config |
| ``trainer_state.json``, ``runs/`` | the log, and the log for TensorBoard |

Adapters of several tasks are in folders with the tasks' names, or in a library.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedIOBase, RawIOBase
from pathlib import Path, PurePosixPath
from typing import Any

from bishare_dsl.adapter.card import CARD
from bishare_dsl.adapter.contents import MEMBERS
from bishare_dsl.adapter.files import CONFIG, TENSORS, is_ours, place_of
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.train.errors import TrainError, translate_refusals
from bishare_dsl.writing import check_writable, discard, replace_file

RUN_FILE, STATE, DIGESTS = "run.json", "trainer_state.json", "digests.json"
LIBRARY = "library"
"""The subfolder with adapters that share tensors."""


def check_new(folder: Path, *, force: bool) -> None:
    """Check that a run may begin in a folder.

    Args:
        folder: the folder, which need not exist.
        force: whether an earlier run may be removed.

    Raises:
        TrainError: it contains a run (BS740) or other files with a run's names (BS741), or cannot be
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
    """Lock a folder for the run that writes into it. A killed process loses its lock.

    Checkpoints after ``resumed`` are removed, because training rewrites them. A new run removes all files
    of an earlier one before it writes its own record. After a kill in between, the earlier record describes
    the remaining files.

    Args:
        folder: created if missing.
        asked: the arguments of a new run.
        resumed: the checkpoint that a run resumes from.
        force: whether an earlier run may be removed.
        earlier: the folders of the earlier run's adapters.

    Raises:
        TrainError: another run is using it (BS741) or has used it since the check (BS740), or it cannot be
            written (BS747).
    """
    with translate_refusals(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / RUN_FILE).open("ab", buffering=0)  # Closing a buffered file may fail.
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
    """Lock the record of a run for this process; Windows and some network folders have no such lock.

    Raises:
        TrainError: another process has the lock (BS741), or it is the record of an earlier run (BS740).
    """
    if os.name != "nt":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            reason = "another training is at work in it"
            help = "wait until it is through, or give another `--output_dir`"
            raise TrainError(codes.NOT_A_RUN(folder=folder, reason=reason, help=help)) from None
        except OSError:  # The system has no locks.
            pass
    if file.tell() and not force:
        help = f"`bishare train --resume {folder}` goes on with it, `--force` begins anew"
        raise TrainError(codes.RUN_EXISTS(folder=folder, help=help))


# Checkpoints ----------------------------------------------------------------------------------------------


def seal(checkpoint: Path, record: Mapping[str, Any]) -> None:
    """Record each file of a finished checkpoint, and what its run is of.

    Args:
        checkpoint: its folder.
        record: ``tasks``, the name and plan digest of each of several tasks, and digests of ``data`` and
            ``base``.
    """
    digests = {name: _digest(checkpoint / name) for name in sorted(_files(checkpoint))}
    content = {"step": step_of(checkpoint), **record, "files": digests}
    replace_file(checkpoint / DIGESTS, json.dumps(content, indent=1).encode())


def _files(checkpoint: Path) -> set[str]:
    """Return the paths of a checkpoint's files, except its record."""
    found = (path for path in checkpoint.rglob("*") if not path.is_dir() or path.is_symlink())
    return {path.relative_to(checkpoint).as_posix() for path in found} - {DIGESTS}


def remove_old(folder: Path, keep: int | None, best: str | None) -> None:
    """Remove the oldest checkpoints until ``keep`` remain, never the last or the best."""
    existing = checkpoints(folder)
    spared = [path for path in existing[:-1] if path.name != Path(best or "").name]
    for path in spared[: max(len(existing) - keep, 0) if keep else 0]:
        discard(path)


def fault_of(checkpoint: Path) -> str | None:
    """Return why a run cannot resume from a checkpoint: it is unsealed, or its files have changed."""
    try:
        record = record_of(checkpoint)
        files, step = dict(record["files"]), record["step"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return "it was not saved to its end"
    if step != step_of(checkpoint):
        return f"it is that of step {step}"
    if added := sorted(_files(checkpoint) - files.keys()):
        return f"`{added[0]}` was added to it"
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


def record_of(checkpoint: Path) -> dict[str, Any]:
    """Return what a checkpoint records of its run: ``tasks`` is empty for one adapter.

    Raises:
        KeyError: something is missing, as in checkpoints of earlier versions.
    """
    record = json.loads((checkpoint / DIGESTS).read_bytes())
    return {name: record[name] for name in ("step", "tasks", "data", "base", "files")}


def find_checkpoint(path: Path) -> Path:
    """Find the checkpoint to resume from: the last intact one in a run's folder, or the named one.

    Raises:
        TrainError: there is none (BS742), or it is damaged (BS743).
    """
    if is_checkpoint(path):
        if fault := fault_of(path):
            raise TrainError(codes.BROKEN_CHECKPOINT(folder=path, reason=fault))
        return path
    reason = f"`{path}` contains no complete one"
    for checkpoint in reversed(checkpoints(path)):
        if (fault := fault_of(checkpoint)) is None:
            return checkpoint
        reason += f"; `{checkpoint.name}`: {fault}"
    help = "`--force` begins anew; `--save_steps N` saves a checkpoint every N steps"
    raise TrainError(codes.NO_CHECKPOINT(reason=reason, help=help))


def checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints in a run's folder, oldest first."""
    return sorted(filter(is_checkpoint, folder.glob("checkpoint-*")), key=step_of)


def is_checkpoint(path: Path) -> bool:
    """Return whether a path has a checkpoint's name."""
    return re.fullmatch(r"checkpoint-\d+", path.name) is not None


def step_of(checkpoint: Path) -> int:
    """Return the number of steps done in a checkpoint."""
    return int(checkpoint.name.partition("-")[2])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _written(folder: Path) -> list[Path]:
    """Find the files of a run in a folder, except its record."""
    named = (folder / name for name in (TENSORS, CONFIG, STATE))
    return [*(path for path in named if path.exists()), *checkpoints(folder)]


def _remove_adapter(folder: Path) -> None:
    """Remove an adapter or a library of ours, and its folder if it becomes empty."""
    if not is_ours(folder):
        return
    for name in (CONFIG, TENSORS, CARD, MEMBERS):
        if os.path.lexists(folder / name):
            discard(folder / name)
    if not any(folder.iterdir()):
        folder.rmdir()


def is_adapter(spec: str) -> bool:
    """Return whether a word names an adapter's folder; otherwise it names a spec."""
    return (place_of(spec)[0] / CONFIG).is_file()
