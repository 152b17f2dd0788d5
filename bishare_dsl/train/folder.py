"""The folder of a run: its checkpoints, its lock and the record of its arguments.

| | |
|---|---|
| the adapter's files | written at the end of the run |
| ``checkpoint-N/`` | written by transformers' Trainer, with only the adapter; sealed by ``seal.json`` |
| ``run.json`` | the arguments, as in a config; ``record`` has all that the run depends on, and its results |
| ``trainer_state.json``, ``runs/`` | the log, and the log for TensorBoard |

Adapters of several tasks are in folders with the tasks' names, or in a library.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.folder.files import CONFIG, place_of
from bishare_dsl.folder.standing import (
    RUN_FILE,
    SEAL,
    STATE,
    TENSORS,
    Kind,
    checkpoints,
    is_of_run,
    obstacle_at,
)
from bishare_dsl.reading import MAX_CONFIG, parse_json, read_file
from bishare_dsl.train.errors import TrainError, translate_refusals
from bishare_dsl.writing import check_writable, lock_name, replace_file

LIBRARY = "library"
"""The subfolder with adapters that share tensors."""

CELLS = f"*,learning_rate=*,seed=*/{RUN_FILE}"
"""The runs in the folder of a grid, by `bishare_dsl.train.grid.name_of`."""

MEMBERS = "members"
"""The subfolder with the run of all tasks, if groups of them are found."""


def check_new(folder: Path, *, resumes: bool) -> None:
    """Check that a run may begin, or go on, in a folder, which need not exist.

    Raises:
        TrainError: it contains what this run would replace (BS740), another run is using it (BS741), or it
            cannot be written (BS747).
    """
    with translate_refusals(folder), ExitStack() as locked:
        if (folder / RUN_FILE).is_file():
            locked.enter_context(lock_name(folder, wait=False))
        if not resumes:
            check_free(folder)
            if any(folder.glob(CELLS)):
                why = "it has the runs of a grid"
                help = "give the grid's command, or another `--output_dir`"
                raise TrainError(codes.RUN_EXISTS(folder=folder, why=why, help=help))
        check_writable(folder)


def begin(folder: Path, asked: Mapping[str, Any]) -> None:
    """Write the arguments of a run whose first part is a run in a folder within, so that it can be resumed.

    Raises:
        TrainError: it would replace something (BS740), or cannot be written (BS747).
    """
    with translate_refusals(folder):
        for place in (folder, folder / LIBRARY):
            check_free(place)
        folder.mkdir(exist_ok=True)
        content = json.dumps(asked, indent=2, ensure_ascii=False)
        replace_file(folder / RUN_FILE, content.encode())


@contextmanager
def hold(folder: Path, asked: Mapping[str, Any], resumed: Path | None) -> Iterator[None]:
    """Lock the name of a folder for the run that writes into it. A killed process loses its lock.

    Checkpoints after ``resumed``, and unsealed ones of an earlier run, are removed.

    Args:
        folder: created if missing.
        asked: the arguments of a new run.
        resumed: the checkpoint that a run resumes from.

    Raises:
        TrainError: another run is using it (BS741) or has used it since the check (BS740), or it cannot be
            written (BS747).
    """
    with ExitStack() as locked:
        with translate_refusals(folder):
            locked.enter_context(lock_name(folder, wait=False))
            if resumed is None:
                check_free(folder)
            folder.mkdir(exist_ok=True)
            for path in _later_checkpoints(folder, resumed):
                shutil.rmtree(path)
            if resumed is None:
                content = json.dumps(asked, indent=2, ensure_ascii=False)
                replace_file(folder / RUN_FILE, content.encode())
        yield


def read_run(folder: Path) -> dict[str, Any]:
    """Read the arguments of the run in a folder, and its record.

    Raises:
        OSError: there is none.
        ValueError: it cannot be read.
    """
    run: dict[str, Any] = parse_json(read_file(folder, RUN_FILE, MAX_CONFIG))
    return run


def complete_record(folder: Path, *, results: Any = None, diverged: str | None = None) -> None:
    """Record how the run in a folder has ended. Hold its lock, so that nobody takes it for a killed one.

    Args:
        folder: the run's.
        results: those of a finished run.
        diverged: why it cannot finish, in words.
    """
    end = {"diverged": diverged} if results is None else {"results": results}
    with translate_refusals(folder):
        run = read_run(folder)
        record = {**run.get("record", {})}
        record.pop("diverged", None)  # It has gone on since, with other arguments.
        run["record"] = {**record, **end}
        content = json.dumps(run, indent=2, ensure_ascii=False)
        replace_file(folder / RUN_FILE, content.encode())


def discard_unfinished(folder: Path) -> None:
    """Remove what a run that was killed after its last step has written, if it has no results.

    Checkpoints, and files that are not the run's, stay.

    Raises:
        TrainError: another run is using the folder (BS741), or it cannot be written (BS747).
    """
    with translate_refusals(folder), lock_name(folder, wait=False):
        if "results" in read_run(folder).get("record", {}):
            return
        for name in (CONFIG, TENSORS, STATE):
            (folder / name).unlink(missing_ok=True)


def digest_of_data(digests: Iterable[str]) -> str:
    """Return one digest of those of all examples of a run, by task and part."""
    digest = hashlib.sha256()
    for one in digests:
        digest.update(one.encode())
    return digest.hexdigest()


def data_of_run(folder: Path) -> str:
    """Return the digest of the examples of the run in a folder."""
    parts = [
        part for parts in read_run(folder)["record"]["data"].values() for part in parts.values()
    ]
    return digest_of_data(part["digest"] for part in parts)


def check_free(folder: Path) -> None:
    """Check that a new run would replace nothing in a folder. What a killed run has begun is no obstacle.

    Raises:
        TrainError: it would (BS740).
    """
    obstacle = obstacle_at(folder, {Kind.OTHER})
    if obstacle is None:
        return
    help = None
    if obstacle.kind not in (Kind.RUN, Kind.ADAPTER, Kind.RESULT, Kind.LIBRARY):
        help = "give another folder as `--output_dir`"
    raise TrainError(codes.RUN_EXISTS(folder=folder, why=obstacle.kind.value, help=help))


def _later_checkpoints(folder: Path, resumed: Path | None) -> list[Path]:
    """Return the checkpoints that a run replaces: all, or those after the one that it resumes from.

    Raises:
        TrainError: one is of another trainer (BS740).
    """
    later = [p for p in checkpoints(folder) if resumed is None or step_of(p) > step_of(resumed)]
    for checkpoint in later:
        if not is_of_run(checkpoint):
            why = f"`{checkpoint.name}` is of another trainer"
            raise TrainError(codes.RUN_EXISTS(folder=folder, why=why, help="move it elsewhere"))
    return later


# Checkpoints ----------------------------------------------------------------------------------------------


def seal(checkpoint: Path, record: Mapping[str, Any]) -> None:
    """Record the digest of a finished checkpoint, and what its run is of.

    Args:
        checkpoint: its folder.
        record: ``tasks``, the name and plan digest of each of several tasks; digests of ``data`` and
            ``base``; and ``starts``, the start of each task and its number of steps, if another.
    """
    content = json.dumps({**record, "digest": _digest(checkpoint, record)}, indent=1)
    replace_file(checkpoint / SEAL, content.encode())


def fault_of(checkpoint: Path) -> str | None:
    """Return why a run cannot resume from a checkpoint: it is unsealed, or its files have changed."""
    try:
        record = record_of(checkpoint)
        same = record.pop("digest") == _digest(checkpoint, record)
        return None if same else "its files are not as saved"
    except (OSError, ValueError, TypeError, KeyError):
        return "it was not saved to its end" if checkpoint.is_dir() else "the folder does not exist"


def record_of(checkpoint: Path) -> dict[str, Any]:
    """Return what a checkpoint records of its run: ``tasks`` is empty for one adapter.

    Checkpoints of earlier versions have no ``starts``.

    Raises:
        KeyError: something else is missing.
    """
    record = parse_json(read_file(checkpoint, SEAL, MAX_CONFIG))
    return {n: record[n] for n in ("tasks", "data", "base", "digest", *record.keys() & {"starts"})}


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
    raise TrainError(codes.NO_CHECKPOINT(reason=reason))


def is_checkpoint(path: Path) -> bool:
    """Return whether a path has a checkpoint's name."""
    return re.fullmatch(r"checkpoint-\d+", path.name) is not None


def step_of(checkpoint: Path) -> int:
    """Return the number of steps done in a checkpoint."""
    return int(checkpoint.name.partition("-")[2])


def _digest(checkpoint: Path, record: Mapping[str, Any]) -> str:
    """Return a digest of what a checkpoint records, and of the names and contents of its files."""
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for path in sorted(checkpoint.rglob("*")):
        if path != checkpoint / SEAL:
            digest.update(f"\n{path.relative_to(checkpoint).as_posix()}\n".encode())
            if path.is_file():
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def is_adapter(spec: str) -> bool:
    """Return whether a word names an adapter's folder; otherwise it names a spec."""
    return (place_of(spec)[0] / CONFIG).is_file()
