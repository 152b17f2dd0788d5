"""Finished runs as their folders record them: what each depended on, and its held-out rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

from bishare_dsl.folder.standing import RUN_FILE, STATE
from bishare_dsl.reading import MAX_CONFIG, parse_json, read_file
from bishare_dsl.train.request import RECORD

ACCURACY, LOSS = "correct, %", "held-out loss"
"""The two measures: the percentage of rows whose correct option is the likeliest, and the mean loss."""


@dataclass(frozen=True)
class FinishedRun:
    """A run of one adapter that has finished or diverged.

    Attributes:
        folder: the run's.
        spec: the name of its spec with the given params, such as ``lora r=2``.
        parameters: trained ones.
        rate: the learning rate.
        seed: of the initial values and of the order of the rows.
        conditions: what runs that are compared have in common: ``data``, ``base``, ``batch`` and ``steps``.
        diverged: why it has no results; None if it has.
        loss: the last training loss.
        seconds: of the run since it began or resumed.
        measure: `ACCURACY` for rows with options, or `LOSS`.
        choosing: the measure of one random half of the held-out rows, which chooses a learning rate.
        judging: the measure of the other held-out rows.
    """

    folder: Path
    spec: str
    parameters: int
    rate: float
    seed: int
    conditions: Mapping[str, str] = field(repr=False)
    diverged: str | None = None
    loss: float | None = None
    seconds: float | None = None
    measure: str = LOSS
    choosing: float | None = None
    judging: float | None = None

    def losses(self) -> dict[int, float]:
        """Return the logged training losses by step, from the log of the folder; without one, none."""
        try:
            state = parse_json(read_file(self.folder, STATE, MAX_CONFIG))
            return {
                entry["step"]: entry["loss"] for entry in state["log_history"] if "loss" in entry
            }
        except (OSError, LookupError, TypeError, ValueError):
            return {}

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, without the conditions."""
        values = {name: value for name, value in vars(self).items() if name != "conditions"}
        return {**values, "folder": str(self.folder)}


def find_runs(places: Iterable[Path]) -> list[FinishedRun]:
    """Return the runs in these folders, or one or two levels below them, sorted by place.

    Runs of several tasks, runs that have not finished, and records of 0.5 are left out.
    """
    runs: dict[Path, FinishedRun] = {}
    for place in places:
        for pattern in (RUN_FILE, f"*/{RUN_FILE}", f"*/*/{RUN_FILE}"):
            for file in sorted(place.glob(pattern)):
                run = read_finished(file.parent)
                if run is not None:
                    runs.setdefault(file.parent.resolve(), run)
    return [*runs.values()]


def read_finished(folder: Path) -> FinishedRun | None:
    """Read the record of a run; None if it has no end, has several tasks, or is of another version."""
    try:
        asked = parse_json(read_file(folder, RUN_FILE, MAX_CONFIG))
        return _run_of(folder, asked, asked[RECORD])
    except (OSError, LookupError, TypeError, ValueError, AttributeError):
        return None


def _run_of(
    folder: Path, asked: Mapping[str, Any], record: Mapping[str, Any]
) -> FinishedRun | None:
    results = record.get("results")
    (parts,) = record["data"].values()
    plan = record["plan"]
    arguments = record["arguments"]
    params = [f"{name}={value}" for name, value in (asked.get("params") or {}).items()]
    conditions = {
        "data": " ".join(parts[part]["digest"] for part in sorted(parts)),
        "base": json.dumps(record["base"], sort_keys=True),
        "batch": _batch(record),
        "steps": str(arguments["max_steps"] if results is None else results["steps"]),
    }
    common: dict[str, Any] = {
        "folder": folder,
        "spec": " ".join([plan["spec"], *params]),
        "parameters": int(plan["parameters"]),
        "rate": float(arguments["learning_rate"]),
        "seed": int(arguments["seed"]),
        "conditions": conditions,
    }
    if results is None:
        return FinishedRun(**common, diverged=str(record["diverged"]))
    measure, rows = _rows(results["held_out"] or {})
    # A fixed random order: rows often alternate between their answers.
    Random(0).shuffle(rows)
    return FinishedRun(
        **common,
        loss=results["loss_last"],
        seconds=results["seconds"],
        measure=measure,
        choosing=_mean(rows[0::2]),
        judging=_mean(rows[1::2]),
    )


def _batch(record: Mapping[str, Any]) -> str:
    """Return the rows of a step."""
    arguments = record["arguments"]
    each = arguments["per_device_train_batch_size"] * arguments["gradient_accumulation_steps"]
    return str(each * record["processes"])


def _rows(held_out: Mapping[str, str]) -> tuple[str, list[float]]:
    """Return the measure and its value at each held-out row."""
    if "correct" in held_out:
        return ACCURACY, [100.0 * int(digit) for digit in held_out["correct"]]
    return LOSS, [float(loss) for loss in held_out.get("losses", "").split()]


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
