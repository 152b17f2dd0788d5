"""The results file: one JSON object per line and run, appended atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


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
    params: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        sets = "".join(f" {name}={value}" for name, value in self.params.items())
        return f"{self.task} {self.method}{sets} lr {self.rate:g} seed {self.seed}"


class Results(dict[Job, Row]):
    """The rows of a file by their job; a line that a kill cut short does not count."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            self[Job(**{name: row[name] for name in Job.__dataclass_fields__})] = row

    def add(self, job: Job, measured: Row) -> None:
        """Append a run, in one write."""
        self[job] = {**asdict(job), **measured}
        torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a") as file:
            file.write("\n" * torn + json.dumps(self[job]) + "\n")
