"""What stands where a command is about to write, and whether the command may write over it.

Nothing of anybody's is replaced or deleted that the same command did not make. `obstacle_at` decides this
for every command, before its first step.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from bishare_dsl.folder.config import PEFT_TYPE, RECORD
from bishare_dsl.reading import MAX_CONFIG, parse_json, read_file
from bishare_dsl.writing import is_half_written

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
RUN_FILE = "run.json"
"""The arguments of a run of `bishare train`, written before its first step."""

SEAL = "seal.json"
"""In each finished checkpoint of a run of `bishare train`."""

STATE = "trainer_state.json"
"""The log of a finished run, of any trainer."""

BANK_TENSORS = frozenset(("own", "common"))
"""The tensors that a checkpoint of a run of several tasks has as its model."""


class Kind(Enum):
    """What a folder may contain, with the words for it. The order is that in which errors name it."""

    FILE = "it is a file"
    DANGLING = "it is a link to nothing"
    MODEL = "it is the folder of a model"
    LIBRARY = "it has a library"
    PEFT_ADAPTER = "it has an adapter of PEFT"
    FOREIGN = "it has files of another program"
    RESULT = "it has an earlier result of the command"
    ADAPTER = "it has an adapter"
    RUN = "it has a run"
    CHECKPOINT = "it has checkpoints of another trainer"
    LOG = "it has the log of a trainer"
    OTHER = "it has other files"


@dataclass(frozen=True)
class Obstacle:
    """What keeps a command from writing.

    Attributes:
        kind: what it is.
        path: where it stands.
    """

    kind: Kind
    path: Path


def obstacle_at(
    folder: Path, replaces: Collection[Kind] = (), *, command: str | None = None
) -> Obstacle | None:
    """Return the first thing at a place that a command may not write over; None if there is none.

    Nothing, an empty folder and what killed writers have left are never in the way.

    Args:
        folder: the place.
        replaces: what the command replaces, or leaves alone beside its own files.
        command: the name of the command, which knows its earlier results by it.

    Raises:
        OSError: the folder cannot be read.
    """
    standing = _standing_at(folder, command)
    for kind in Kind:
        if kind in standing and kind not in replaces:
            return Obstacle(kind, standing[kind])
    return None


def checkpoints(folder: Path) -> list[Path]:
    """Return the folders of checkpoints in a run's folder, oldest first."""
    named = [
        path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)
    ]
    return sorted(named, key=lambda path: int(path.name.partition("-")[2]))


def is_of_run(checkpoint: Path) -> bool:
    """Tell whether `bishare train` may have begun a checkpoint: it is sealed, or beside a run's arguments.

    A run saves adapters alone. A checkpoint with a model's weights is of another trainer.
    """
    if (checkpoint / SEAL).is_file():
        return True
    if not _is_run_file(checkpoint.parent / RUN_FILE):
        return False
    return not any(_is_weights(path.name) and not _is_bank(path) for path in checkpoint.iterdir())


def _standing_at(folder: Path, command: str | None) -> dict[Kind, Path]:
    """Return what stands at a place, each kind with its path."""
    if not os.path.lexists(folder):
        return {}
    if not folder.exists():
        return {Kind.DANGLING: folder}
    if not folder.is_dir():
        return {Kind.FILE: folder}
    names = _finished_names(folder)
    standing: dict[Kind, Path] = {}
    if _is_model(folder):
        standing[Kind.MODEL] = folder / "config.json"
    if os.path.lexists(folder / CONFIG):
        standing[_kind_of_adapter(folder, command)] = folder / CONFIG
    elif TENSORS in names:
        standing[_kind_of_tensors(folder / TENSORS)] = folder / TENSORS
    standing |= _of_trainers(folder, names)
    if names and not standing:
        standing[Kind.OTHER] = folder
    return standing


def _finished_names(folder: Path) -> set[str]:
    """Return the names in a folder, without what killed writers have left."""
    names = {path.name for path in folder.iterdir()}
    pending = {name for name in names if is_half_written(name)}
    if CONFIG not in names and any(name.startswith(f".{CONFIG}.") for name in pending):
        pending.add(TENSORS)  # A first save that was killed between the two files.
    return names - pending


def _of_trainers(folder: Path, names: set[str]) -> dict[Kind, Path]:
    """Return what runs of trainers have left in a folder, but for what a killed run of ours has begun."""
    standing: dict[Kind, Path] = {}
    for checkpoint in checkpoints(folder):
        if (checkpoint / SEAL).is_file():
            standing.setdefault(Kind.RUN, checkpoint)
        elif not checkpoint.is_dir() or not is_of_run(checkpoint):
            standing.setdefault(Kind.CHECKPOINT, checkpoint)
    if STATE in names:
        standing[Kind.LOG] = folder / STATE
    elif RUN_FILE in names and not _is_run_file(folder / RUN_FILE):
        standing[Kind.LOG] = folder / RUN_FILE
    return standing


def _is_model(folder: Path) -> bool:
    """Tell whether a folder is that of a model: transformers would read a model from it."""
    fields = _fields_of(folder, "config.json")
    return "model_type" in fields or "architectures" in fields


def _is_weights(name: str) -> bool:
    """Tell whether a file's name is one of a model's weights."""
    return re.fullmatch(r"(pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)", name) is not None


def _is_bank(path: Path) -> bool:
    """Tell whether a file has the tensors of a run of several tasks, or is empty, as one that was begun."""
    if path.name != "model.safetensors":
        return False
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, MAX_CONFIG))
    if not header:
        return path.stat().st_size == 0
    try:
        tensors = parse_json(header)
    except ValueError:
        return False
    return isinstance(tensors, dict) and tensors.keys() <= {*BANK_TENSORS, "__metadata__"}


def _kind_of_adapter(folder: Path, command: str | None) -> Kind:
    """Return the kind of the adapter in a folder. Without a method in its config, its tensors tell."""
    fields = _fields_of(folder, CONFIG)
    method = fields.get("peft_type")
    if method is None:
        return _kind_of_tensors(folder / TENSORS)
    if method != PEFT_TYPE:
        return Kind.PEFT_ADAPTER
    record = fields.get(RECORD)
    if not isinstance(record, dict):
        return Kind.ADAPTER
    if command is not None and record.get("command") == command:
        return Kind.RESULT
    return Kind.LIBRARY if isinstance(record.get("adapters"), dict) else Kind.ADAPTER


def _kind_of_tensors(path: Path) -> Kind:
    """Return the kind of tensors whose config is missing or damaged: bishare's may be saved again."""
    is_ours = path.is_file() and b"bishare_tensors." in path.read_bytes()
    return Kind.ADAPTER if is_ours else Kind.FOREIGN


def _is_run_file(path: Path) -> bool:
    """Tell whether a file has the arguments of a run of `bishare train`."""
    return "spec" in _fields_of(path.parent, path.name)


def _fields_of(folder: Path, name: str) -> dict[str, Any]:
    """Return the fields of a file of JSON; none if it is missing or is none."""
    try:
        fields = parse_json(read_file(folder, name, MAX_CONFIG))
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}
