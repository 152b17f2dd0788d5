"""What a run leaves to be read: its record, ``run.json``, and its log, ``log.jsonl``; without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

RUN, LOG = "run.json", "log.jsonl"
_LARGEST = 1e300  # neither infinite nor NaN, nor a whole number that no float is


class _Spec(BaseModel):
    name: str
    params: dict[str, int | float | str] = {}


class _Plan(BaseModel):
    trainable: int


class _Result(BaseModel):
    seconds: float
    tokens_per_second: float


class _Record(BaseModel):
    """The part of ``run.json`` by which runs are compared."""

    status: str
    spec: _Spec
    plan: _Plan
    started: datetime
    ended: datetime | None = None
    asked: dict[str, Any] = {}
    result: _Result | None = None


class Run(BaseModel):
    """What became of a run, in the words of a table.

    ``settings`` is what was asked, params of the spec included. Losses are those that were logged;
    ``held_out`` is the lowest on held-out rows. ``seconds`` is what the run took, as far as it is known.
    """

    folder: str
    status: str
    started: datetime
    spec: str
    settings: dict[str, Any]
    trainable: int
    steps: int
    first: float | None
    best: float | None
    last: float | None
    held_out: float | None
    seconds: float | None
    tokens_per_second: float | None


def find_runs(folder: Path) -> list[Path]:
    """List a folder, if it is a run's, or those that are in it, at any depth."""
    if (folder / RUN).is_file():
        return [folder]
    return sorted(path.parent for path in folder.glob(f"**/{RUN}"))


def read_run(folder: Path) -> Run:
    """Read what became of a run, finished or not.

    Raises:
        OSError: the system refused.
        ValueError: the record is not one of bishare's.
    """
    record = _Record.model_validate_json((folder / RUN).read_bytes())
    log = list(_logged(folder / LOG))
    losses = [entry["loss"] for entry in log if "loss" in entry]
    held_out = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    taken = (record.ended - record.started).total_seconds() if record.ended else None
    result = record.result
    return Run(
        folder=str(folder),
        status=record.status,
        started=record.started,
        spec=record.spec.name,
        settings={**record.asked, **record.spec.params},
        trainable=record.plan.trainable,
        steps=max((int(entry.get("step", 0)) for entry in log), default=0),
        first=losses[0] if losses else None,
        best=min(losses, default=None),
        last=losses[-1] if losses else None,
        held_out=min(held_out, default=None),
        seconds=result.seconds if result else taken,
        tokens_per_second=result.tokens_per_second if result else None,
    )


def read_record(folder: Path) -> dict[str, Any] | None:
    """Read the record in a folder; None where there is no run, an empty one where it cannot be read."""
    if not (folder / RUN).is_file():
        return None
    try:
        found = json.loads((folder / RUN).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _logged(path: Path) -> Iterator[dict[str, float]]:
    """Read the numbers of each line that is whole: a run that goes on may be writing one."""
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield {
                name: value
                for name, value in entry.items()
                if isinstance(value, (int, float)) and abs(value) < _LARGEST
            }
