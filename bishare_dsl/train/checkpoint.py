"""Checkpoints as folders: written aside and then given their name, so that each is whole or is not there.

| file | |
|---|---|
| the adapter's | as `bishare_dsl.adapter.files` has it: a checkpoint is an adapter folder |
| ``state.json``, ``state.safetensors`` | optimizer, schedule, gradient scaler, the processes' generators |
| ``trainer_state.json`` | transformers': steps, epochs, what was logged |
| ``checkpoint.json`` | the format, what run it is of, and the digest of each of the other three |

While it is written, the folder is called ``.checkpoint-N.new``; while it is replaced, the old one is
``.checkpoint-N.old``, and while it is removed, ``.checkpoint-N.gone``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from bishare_dsl.adapter.config import Digest
from bishare_dsl.adapter.journal import digest_of, matches
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.train.errors import TrainError
from bishare_dsl.train.state import from_bytes, to_bytes

FORMAT = 1
MANIFEST = "checkpoint.json"
STATE, STATE_TENSORS = "state.json", "state.safetensors"
TRAINER = "trainer_state.json"

_NAME = re.compile(r"checkpoint-(\d+)")
_UNFINISHED = re.compile(r"\.checkpoint-\d+\.(new|old|gone)")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and found whole.

    Attributes:
        folder: where it is.
        step: optimizer steps that were done.
        run: what run it is of, as `bishare_dsl.train.record.Identity` says it.
        state: None where the adapter alone was saved.
    """

    folder: Path
    step: int
    run: Mapping[str, Any]
    state: Mapping[str, Any] | None


def name_of(step: int) -> str:
    """The folder of the checkpoint after so many steps."""
    return f"checkpoint-{step}"


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints in a run's folder, oldest first."""
    found = {int(m[1]): p for p in _entries(folder) if (m := _NAME.fullmatch(p.name))}
    return [found[step] for step in sorted(found)]


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A folder to write a checkpoint into, which becomes ``folder`` when all has gone well.

    At no moment is ``folder`` there in part. It is on the disk before it has its name.

    Raises:
        OSError: the system refused; what was there before is there.
    """
    new, old = _aside(folder, "new"), _aside(folder, "old")
    remove(new)
    new.mkdir(parents=True)
    try:
        yield new
        for path in (*new.rglob("*"), new):
            _sync(path)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        _sync(folder.parent)
        remove(old)
    except BaseException:
        remove(new)
        raise


def write_state(folder: Path, state: Any, step: int, run: Mapping[str, Any]) -> None:
    """Write what a checkpoint has beside the adapter and ``trainer_state.json``, which is there already.

    Args:
        folder: that is staged.
        state: a tree, or None to save the adapter alone.
        step: optimizer steps that are done.
        run: what run it is of.

    Raises:
        TrainError: the state cannot be stored (BS748).
        OSError: the system refused.
    """
    files = {TRAINER: (folder / TRAINER).read_bytes()}
    if state is not None:
        files[STATE], files[STATE_TENSORS] = to_bytes(state)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    manifest = {
        "format": FORMAT,
        "step": step,
        "run": run,
        "files": {name: digest_of(content).model_dump() for name, content in files.items()},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint and check all of it but the adapter, which `read_adapter` reads.

    Raises:
        TrainError: it is none, or is not as it was saved (BS742, BS743).
    """
    if not (folder / MANIFEST).is_file():
        if folder.is_dir() and _NAME.fullmatch(folder.resolve().name):
            reason = f"it has no {MANIFEST}"
            raise TrainError(codes.BROKEN_CHECKPOINT(folder=folder, reason=reason))
        reason = f"`{folder}` is no checkpoint of bishare"
        raise TrainError(codes.NO_CHECKPOINT(reason=reason))
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if manifest["format"] != FORMAT:
            reason = f"it is in format {manifest['format']}, and this bishare reads {FORMAT}"
            raise TrainError(codes.BROKEN_CHECKPOINT(folder=folder, reason=reason))
        for name, digest in manifest["files"].items():
            if not matches(folder / name, Digest(**digest)):
                raise ValueError(f"{name} is missing, or is not what was saved")
        state = None
        if STATE in manifest["files"]:
            text, tensors = ((folder / name).read_bytes() for name in (STATE, STATE_TENSORS))
            state = from_bytes(text, tensors)
        return Checkpoint(folder, int(manifest["step"]), dict(manifest["run"]), state)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TrainError(codes.BROKEN_CHECKPOINT(folder=folder, reason=reason)) from error


def unfinished(folder: Path) -> list[Path]:
    """What a kill left of checkpoints that were being written, replaced or removed."""
    return [path for path in _entries(folder) if _UNFINISHED.fullmatch(path.name)]


def tidy(folder: Path) -> None:
    """Finish what a kill interrupted: what was being replaced is back, what is unfinished is gone."""
    for path in unfinished(folder):
        replaced = folder / path.name[1:].removesuffix(".old")
        if path.suffix == ".old" and not replaced.exists():
            path.rename(replaced)
        else:
            shutil.rmtree(path, ignore_errors=True)


def remove(folder: Path) -> None:
    """Remove a checkpoint so that it is never there in part under its name."""
    if _NAME.fullmatch(folder.name):
        remove(gone := _aside(folder, "gone"))
        folder = folder.rename(gone)
    shutil.rmtree(folder, ignore_errors=True)


def rotate(folder: Path, keep: int | None, best: Path | None) -> None:
    """Remove the oldest checkpoints, until ``keep`` are left; the last and the best always are."""
    found = checkpoints(folder)
    kept = set(found[-1:]) | ({best} if best in found else set())
    if keep is None or keep < 1:
        return
    for path in reversed(found):
        if len(kept) < keep:
            kept.add(path)
    for path in found:
        if path not in kept:
            remove(path)


def _aside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}")


def _entries(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def _sync(path: Path) -> None:
    """See that a file's content, or a folder's names, are on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # It has no such call, and no need of it.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
