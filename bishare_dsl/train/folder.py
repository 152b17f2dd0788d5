"""The folder of a run: whether a run may begin in it or go on, and the record of what was asked.

| | |
|---|---|
| the adapter's files | once the run is finished, so that the folder is an adapter's |
| ``checkpoint-N/`` | transformers' Trainer's, with the adapter alone; its last file says that it is whole |
| ``run.json`` | what was asked, as a config takes it |
| ``trainer_state.json``, ``runs/`` | what was logged, and told to TensorBoard |
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from bishare_dsl.adapter.files import CONFIG, TENSORS
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.train.errors import TrainError, translate_refusals
from bishare_dsl.writing import check_writable

ASKED, STATE = "run.json", "trainer_state.json"
BANK = "bank.safetensors"
"""In a checkpoint of several tasks, the tensors of all of their adapters."""


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
        if (folder / ASKED).is_file():
            with (folder / ASKED).open("ab") as file:
                _take(file, folder, force=force)
        elif (folder.exists() and not folder.is_dir()) or _written(folder):
            reason = "it is not empty, and holds no run of bishare"
            raise TrainError(codes.NOT_A_RUN(folder=folder, reason=reason))
        check_writable(folder)


@contextmanager
def claim(
    folder: Path, asked: Mapping[str, Any], resumed: Path | None, *, force: bool = False
) -> Iterator[None]:
    """Hold a folder for the one run that writes into it; after a kill nobody holds it.

    The checkpoints after ``resumed`` are removed: training makes them again. A run that begins removes all
    that an earlier one has written.

    Raises:
        TrainError: another training is at work in it (BS741), or was since it was checked (BS740), or it
            cannot be written (BS747).
    """
    with translate_refusals(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ASKED).open("ab")
    with file:
        _take(file, folder, force=force or resumed is not None)
        with translate_refusals(folder):
            if resumed is None:
                dropped = _written(folder)
                file.truncate(0)
                file.write(json.dumps(asked, indent=2, ensure_ascii=False).encode())
                file.flush()
            else:
                dropped = [p for p in checkpoints(folder) if step_of(p) > step_of(resumed)]
            for path in dropped:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield


def _take(file: IO[bytes], folder: Path, *, force: bool) -> None:
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


def find_checkpoint(path: Path) -> Path:
    """Find the checkpoint to go on from: the last whole one in the folder of a run, or the one that is named.

    Raises:
        TrainError: there is none (BS742), or it is not whole (BS743).
    """
    if is_checkpoint(path):
        if not _is_whole(path):
            raise TrainError(codes.BROKEN_CHECKPOINT(folder=path))
        return path
    for found in reversed(checkpoints(path)):
        if _is_whole(found):
            return found
    help = "`--force` begins anew; `--save_steps N` saves a checkpoint every N steps"
    raise TrainError(codes.NO_CHECKPOINT(reason=f"`{path}` has none that is whole", help=help))


def checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints in a run's folder, oldest first."""
    return sorted(filter(is_checkpoint, folder.glob("checkpoint-*")), key=step_of)


def is_checkpoint(path: Path) -> bool:
    """Tell whether a path is called as a checkpoint is."""
    return re.fullmatch(r"checkpoint-\d+", path.name) is not None


def step_of(checkpoint: Path) -> int:
    """Return how many steps are done in a checkpoint."""
    return int(checkpoint.name.partition("-")[2])


def _is_whole(checkpoint: Path) -> bool:
    """Tell whether a checkpoint was saved to its end: transformers writes its own state last."""
    try:
        state = json.loads((checkpoint / STATE).read_bytes())
    except (OSError, ValueError):
        return False
    named = has_bank(checkpoint) or all((checkpoint / n).is_file() for n in (CONFIG, TENSORS))
    return named and state.get("global_step") == step_of(checkpoint)


def has_bank(checkpoint: Path) -> bool:
    """Tell whether a checkpoint is one of several tasks."""
    return (checkpoint / BANK).is_file()


def _written(folder: Path) -> list[Path]:
    """Find what a run has written into a folder, but for what was asked; the adapter's config first."""
    named = (folder / name for name in (CONFIG, TENSORS, STATE))
    return [*(path for path in named if path.exists()), *checkpoints(folder)]
