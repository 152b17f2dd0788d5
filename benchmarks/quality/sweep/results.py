"""The results file: one JSON object a line and a run, appended whole or not at all."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """A run: all that its result depends on.

    Attributes:
        params: set on top of the method's own, for an ablation.
    """

    task: str
    method: str
    rate: float
    seed: int
    size: str = "small"
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What tells runs apart."""
        return json.dumps(
            [self.task, self.method, self.rate, self.seed, self.size, dict(self.params)],
            sort_keys=True,
        )

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Job:
        """The job of a row of the results file."""
        return cls(**{name: row[name] for name in cls.__dataclass_fields__})

    def __str__(self) -> str:
        sets = "".join(f" {name}={value}" for name, value in self.params.items())
        return f"{self.task} {self.method}{sets} lr {self.rate:g} seed {self.seed}"


class Results:
    """The rows of a file by the key of their job. A line that a kill cut short does not count."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            self.rows[Job.of(row).key] = row

    def get(self, job: Job) -> dict[str, Any] | None:
        return self.rows.get(job.key)

    def add(self, job: Job, measured: Mapping[str, Any]) -> None:
        """Append a run, in one write."""
        row = {**vars(job), "params": dict(job.params), **measured}
        # JSON has no NaN; a run that diverged has no loss.
        row = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()
        }
        with self.path.open("ab+") as file:
            file.seek(0, os.SEEK_END)
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(row).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows[job.key] = row


def unmask(row: Mapping[str, Any], part: str = "test") -> list[int]:
    """Of each row of a part whether it was right, 1 or 0; the inverse of `training.bitmask`."""
    digits = row[f"{part}_right"]
    bits = f"{int(digits, 16):0{4 * len(digits)}b}"
    return [int(bit) for bit in bits[: row[f"{part}_rows"]]]


def gaps(
    runs: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], part: str = "test"
) -> list[float]:
    """Of each row of a part how much more often `runs` are right on it than `others`, from -1 to 1."""
    mine, theirs = (
        [statistics.fmean(bits) for bits in zip(*(unmask(run, part) for run in side), strict=True)]
        for side in (runs, others)
    )
    return [a - b for a, b in zip(mine, theirs, strict=True)]


def estimate(gaps: Sequence[float]) -> tuple[float, float]:
    """The mean gap and its standard error.

    A gap is a mean over runs, so the error is that of drawing the rows, and of the runs only as far as
    their number averages it out.
    """
    return statistics.fmean(gaps), statistics.stdev(gaps) / math.sqrt(len(gaps))
