"""Checkpoints as folders: written aside and then given their name, so that each is whole or is not there.

| file | |
|---|---|
| the adapter's | as `bishare_dsl.adapter.files` has it: a checkpoint is an adapter folder |
| ``state.json``, ``state.safetensors`` | optimizer, schedule, gradient scaler, the processes' generators |
| ``trainer_state.json`` | transformers': steps, epochs, what was logged |
| ``checkpoint.json`` | the format, what run it is of, and the digest of each of the other three |

It is written, replaced and removed as `bishare_dsl.writing` does it; `tidy` clears up after a kill.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

from pydantic import BaseModel, NonNegativeInt, PositiveInt
from safetensors import SafetensorError
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from bishare_dsl.adapter.card import CARD
from bishare_dsl.adapter.files import CONFIG, TENSORS
from bishare_dsl.diagnostics import one_line
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.train.errors import TrainError
from bishare_dsl.train.state import from_bytes, to_bytes
from bishare_dsl.writing import (
    Digest,
    content_of,
    digest_of,
    discard,
    parse_leftover,
    remove_folder,
)

FORMAT = 1
MANIFEST = "checkpoint.json"
STATE, STATE_TENSORS = "state.json", "state.safetensors"
TRAINER = "trainer_state.json"

_NAME = re.compile(r"checkpoint-(\d+)")
_OURS = re.compile(r"checkpoint(-\d+)?|run\.json|log\.jsonl|loss\.png")


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


class _Manifest(BaseModel):
    format: int
    step: NonNegativeInt
    run: dict[str, Any]
    files: dict[Literal["state.json", "state.safetensors", "trainer_state.json"], Digest]


class _Division(BaseModel):
    processes: PositiveInt
    per_device_train_batch_size: PositiveInt
    gradient_accumulation_steps: PositiveInt


class _Process(BaseModel):
    generators: dict[str, Any]
    epoch: dict[str, Any] = {}  # 0.1 had none.
    loss: float


class _State(BaseModel):
    """What `callbacks.Saves` saves; the library that made a part looks into it when it takes it back."""

    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    scaler: dict[str, Any] | None
    division: _Division
    processes: list[_Process]
    losses: float
    logged: NonNegativeInt
    tokens: NonNegativeInt


class _Progress(BaseModel):
    """What a run goes by in transformers' ``trainer_state.json``."""

    global_step: NonNegativeInt
    max_steps: int
    epoch: float | None
    total_flos: float
    train_batch_size: int | None = None
    num_input_tokens_seen: int = 0
    logging_steps: float = 0
    eval_steps: float | None = None
    save_steps: float = 0
    log_history: list[dict[str, float | int | str | None]]
    best_metric: float | None = None
    best_global_step: int | None = None
    best_model_checkpoint: str | None = None
    stateful_callbacks: dict[str, dict[str, Any] | list[dict[str, Any]]]


def name_of(step: int) -> str:
    """Name the folder of the checkpoint after so many steps."""
    return f"checkpoint-{step}"


def checkpoints(folder: Path) -> list[Path]:
    """Find the finished checkpoints in a run's folder, oldest first."""
    found = {int(m[1]): p for p in _entries(folder) if (m := _NAME.fullmatch(p.name))}
    return [found[step] for step in sorted(found)]


def is_own(folder: Path) -> bool:
    """Tell whether a folder is a checkpoint of bishare, and holds nothing else."""
    names = {path.name for path in folder.iterdir()}
    own = {MANIFEST, STATE, STATE_TENSORS, TRAINER, CONFIG, TENSORS, CARD}
    return MANIFEST in names and names <= own


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
        reason = f"`{folder}` is not a checkpoint of bishare"
        raise TrainError(codes.NO_CHECKPOINT(reason=reason))
    try:
        manifest = _Manifest.model_validate_json((folder / MANIFEST).read_bytes())
        if manifest.format != FORMAT:
            raise ValueError(f"it is in format {manifest.format}, and this bishare reads {FORMAT}")
        files: dict[str, bytes] = {}
        for name, digest in manifest.files.items():
            if (content := content_of(folder, name, digest)) is None:
                raise ValueError(f"{name} is missing, or is not what was saved")
            files[name] = content
        state = from_bytes(files[STATE], files[STATE_TENSORS]) if STATE in files else None
        return Checkpoint(folder, manifest.step, manifest.run, state)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise broken_checkpoint(folder, error) from error


def check_state(checkpoint: Checkpoint) -> None:
    """Check that a run may go on from a checkpoint, as far as that can be seen without its model.

    Raises:
        TrainError: what it holds beside the adapter is not what was saved (BS743).
    """
    try:
        progress = _Progress.model_validate_json((checkpoint.folder / TRAINER).read_bytes())
        if progress.global_step != checkpoint.step:
            raise ValueError(f"{TRAINER} is of step {progress.global_step}")
        _State.model_validate(checkpoint.state)
    except (OSError, ValueError) as error:
        raise broken_checkpoint(checkpoint.folder, error) from error


def broken_checkpoint(folder: Path, error: Exception) -> TrainError:
    """Say in one line why a checkpoint cannot be read (BS743)."""
    return TrainError(codes.BROKEN_CHECKPOINT(folder=folder, reason=one_line(error)))


@contextmanager
def blame_checkpoint(checkpoint: Checkpoint) -> Iterator[None]:
    """Take what an owner of a part of the state refuses for what it is: another state than was saved.

    Raises:
        TrainError: it refused (BS743).
    """
    try:
        yield
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        OverflowError,
        RuntimeError,
    ) as error:
        raise broken_checkpoint(checkpoint.folder, error) from error


@contextmanager
def for_transformers(checkpoint: Checkpoint | None) -> Iterator[str | None]:
    """Yield a folder that transformers resumes from without loading weights: of their shards there are none.

    It reads steps, epochs and what was logged from its own ``trainer_state.json`` in it.
    """
    if checkpoint is None:
        yield None
        return
    with TemporaryDirectory() as folder:
        shutil.copy(checkpoint.folder / TRAINER, folder)
        (Path(folder) / SAFE_WEIGHTS_INDEX_NAME).write_text('{"metadata": {}, "weight_map": {}}')
        yield folder


def find_unfinished(folder: Path) -> list[Path]:
    """Find what a kill left of checkpoints and files of a run that were being written or removed."""
    found = folder.iterdir() if folder.is_dir() else ()
    return [path for path in found if (left := parse_leftover(path)) and _OURS.fullmatch(left[0])]


def tidy(folder: Path) -> None:
    """Finish what a kill interrupted: what was being replaced is back, what is unfinished is gone."""
    for path in find_unfinished(folder):
        name, what = cast("tuple[str, str]", parse_leftover(path))
        if what == "old" and not (folder / name).exists():
            path.rename(folder / name)
        else:
            discard(path)


def rotate(folder: Path, keep: int | None, best: Path | None, *, last: bool = True) -> None:
    """Remove the oldest checkpoints, until ``keep`` are left; the best always is, and the ``last`` one."""
    found = checkpoints(folder)
    kept = set(found[-1:] if last else ()) | ({best} if best in found else set())
    if keep is None or keep < 1:
        return
    for path in reversed(found):
        if len(kept) < keep:
            kept.add(path)
    for path in found:
        if path not in kept and is_own(path):
            remove_folder(path)


def _entries(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
