"""Steps a second and peak memory of each method, measured in turn; for a machine with nothing else to do."""

from __future__ import annotations

import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from sweep.methods import METHODS
from sweep.results import Job
from sweep.training import Loaded, prepare

ROUNDS, STEPS = 3, 6


class Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.times.append(time.perf_counter())


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status)[1])


def steps(job: Job, folder: Path, task: Loaded) -> dict[str, Any]:
    """Seconds of each step but the first, and the peak memory."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = prepare(job, folder, task, STEPS, output_dir=scratch)
        trainer.add_callback(clock)
        # The largest resident memory counts from here on: loading the base takes more than training.
        Path("/proc/self/clear_refs").write_text("5")
        trainer.train()
    gaps = [b - a for a, b in zip(clock.times, clock.times[1:], strict=False)]
    return {"seconds": gaps, "peak_bytes": _peak()}


def measure(
    methods: Sequence[str],
    task: str,
    folder: Path,
    loaded: Loaded,
    apart: Callable[..., Any],
) -> dict[str, dict[str, float]]:
    """By method, the median steps a second over all rounds and the largest peak memory.

    Args:
        apart: calls a function in a process of its own.
    """
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in methods}
    for number in range(ROUNDS):
        # Every other round backwards, so that none always follows the same one. The same batches for all.
        for name in methods if number % 2 else reversed(methods):
            found[name].append(
                apart(steps, Job(task, name, METHODS[name].start, 0), folder, loaded)
            )
        print(f"round {number + 1}/{ROUNDS}", flush=True)
    return {
        name: {
            "steps_per_s": 1 / statistics.median(s for r in rounds for s in r["seconds"]),
            "peak_bytes": max(r["peak_bytes"] for r in rounds),
        }
        for name, rounds in found.items()
    }
