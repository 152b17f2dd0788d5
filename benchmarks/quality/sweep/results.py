"""The results file: one JSON object a line and a run, appended whole or not at all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweep.tasks import TASKS


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
    """The rows of a file by the key of their job.

    A line that a kill cut short does not count, nor does a run of as many steps as its size had once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            job = Job.of(row)
            steps = TASKS[job.task].sizes[job.size].steps
            if steps is None or row.get("steps", steps) == steps:
                self.rows[job.key] = row

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
