"""Print the table of a folder of results: the learning rate that was chosen for each spec, and its scores.

python table.py RESULTS [--first]

The training loss chooses the learning rate. A run reads each of its 20,000 training rows once, so the loss
of its last 250 steps is of rows that it has not seen. PEFT's 50 validation rows are too few: their standard
error is 7 points.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from experiments import Experiment, Result, experiments

from bishare_dsl.show.table import Table, write_tables

T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""The 97.5% quantile of Student's t for a mean of so many numbers."""


@dataclass(frozen=True)
class Run:
    """What a result says about one run.

    Attributes:
        name: of the spec.
        learning_rate: of the optimizer.
        seed: of the adapter.
        loss: the mean training loss of the last evaluation interval.
        accuracy: on GSM8K's test rows, in percent.
        forgetting: the change of the loss on Wikipedia.
        parameters: how many are trained.
        bytes: of the saved adapter.
        memory: the most that was reserved, in bytes.
        seconds: of training.
    """

    name: str
    learning_rate: float
    seed: int
    loss: float
    accuracy: float
    forgetting: float
    parameters: int
    bytes: int
    memory: int
    seconds: float


@dataclass(frozen=True)
class Chosen:
    """The runs of a spec at the learning rate that was chosen.

    Attributes:
        learning_rate: with the lowest mean training loss.
        at_edge: whether it is the lowest or the highest that was tried, of several.
        runs: one for each seed, in their order.
    """

    learning_rate: float
    at_edge: bool
    runs: Sequence[Run]


def read_run(file: Path, result: Result) -> Run:
    """Read a result of PEFT's benchmark.

    Raises:
        SystemExit: the result is not of the experiment that its file names, or of no successful run.
    """
    content: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    run_info = content["run_info"]
    info = content["train_info"]
    learning_rate = run_info["train_config"]["optimizer_kwargs"]["lr"]
    seed = run_info["peft_config"]["seed"]
    if (learning_rate, seed) != (result.learning_rate, result.seed):
        raise SystemExit(f"{file}: has learning rate {learning_rate} and seed {seed}")
    last = info["metrics"][-1]
    if info["status"] != "success" or "test accuracy" not in last:
        raise SystemExit(f"{file}: the run did not succeed; remove the file and run again")
    return Run(
        name=result.name,
        learning_rate=learning_rate,
        seed=seed,
        loss=last["train loss"],
        accuracy=100 * last["test accuracy"],
        forgetting=last["forgetting"],
        parameters=info["num_trainable_params"],
        bytes=info["file_size"],
        memory=info["accelerator_memory_max"],
        seconds=info["train_time"],
    )


def read_runs(folder: Path) -> list[Run]:
    """Read all results of ours in a folder."""
    runs: list[Run] = []
    for file in sorted(folder.glob("*.json")):
        result = Result.of_file(file)
        if result is not None:
            runs.append(read_run(file, result))
    return runs


def choose(runs: Sequence[Run], name: str, wanted: Sequence[Experiment]) -> Chosen | None:
    """Choose the learning rate of a spec: the lowest mean training loss over all seeds.

    A learning rate at which a seed is missing or diverged cannot be chosen, or lucky seeds would judge it.

    Args:
        runs: the results.
        name: of the spec.
        wanted: the experiments.

    Returns:
        The runs at the learning rate, or None if every learning rate lacks a seed.
    """
    planned = [experiment for experiment in wanted if experiment.name == name]
    rates = sorted({experiment.learning_rate for experiment in planned})
    whole: dict[float, list[Run]] = {}
    for rate in rates:
        seeds = {experiment.seed for experiment in planned if experiment.learning_rate == rate}
        there = [run for run in runs if (run.name, run.learning_rate) == (name, rate)]
        finite = [run for run in there if run.seed in seeds and math.isfinite(run.loss)]
        if len(finite) == len(seeds):
            whole[rate] = sorted(finite, key=lambda run: run.seed)
    if not whole:
        return None
    best = min(whole, key=lambda rate: fmean(run.loss for run in whole[rate]))
    at_edge = len(rates) > 1 and best in (rates[0], rates[-1])
    return Chosen(best, at_edge, whole[best])


def mean_and_interval(values: Sequence[float], form: str = "{:.1f}") -> str:
    """Write a mean with half the width of its 95% interval over seeds; alone, a value has none."""
    mean = form.format(fmean(values))
    if len(values) < 2:
        return mean
    half = T_95[len(values)] * stdev(values) / math.sqrt(len(values))
    return f"{mean} ± {half:.1f}"


def report(folder: Path, *, first: bool = False) -> str:
    """Write the table of a folder of results, and what is missing."""
    wanted = experiments(first=first)
    runs = read_runs(folder)
    names = list(dict.fromkeys(experiment.name for experiment in wanted))
    chosen = {name: choose(runs, name, wanted) for name in names}
    baseline = chosen[names[0]]
    rows: list[list[object]] = []
    for name, choice in chosen.items():
        if choice is not None:
            rows.append(_row(name, choice, None if name == names[0] else baseline))
    head = ["spec", "parameters", "learning rate", "seeds", "GSM8K, %"]
    head += [f"minus {names[0]}", "forgetting", "file, MiB", "reserved, GiB", "s"]
    notes = ["± 95% over seeds; differences are between equal seeds"]
    if any(choice is not None and choice.at_edge for choice in chosen.values()):
        notes.append("* the lowest or highest learning rate that was tried")
    done = {(run.name, run.learning_rate, run.seed) for run in runs if math.isfinite(run.loss)}
    missing = [e.folder for e in wanted if (e.name, e.learning_rate, e.seed) not in done]
    if missing:
        notes.append(f"missing or diverged, {len(missing)} of {len(wanted)}: {', '.join(missing)}")
    return write_tables([Table(head, rows), "\n".join(notes)] if rows else ["\n".join(notes[1:])])


def _row(name: str, choice: Chosen, baseline: Chosen | None) -> list[object]:
    """Make a row of the table; the baseline's has no difference."""
    runs = choice.runs
    difference = None
    if baseline is not None:
        of_seed = {run.seed: run.accuracy for run in baseline.runs}
        gaps = [run.accuracy - of_seed[run.seed] for run in runs]
        difference = mean_and_interval(gaps, "{:+.1f}")
    rate = f"{choice.learning_rate:g}"
    return [
        name,
        runs[0].parameters,
        f"{rate}*" if choice.at_edge else rate,
        len(runs),
        mean_and_interval([run.accuracy for run in runs]),
        difference,
        f"{fmean(run.forgetting for run in runs):+.3f}",
        f"{fmean(run.bytes for run in runs) / 2**20:.1f}",
        f"{max(run.memory for run in runs) / 2**30:.1f}",
        f"{fmean(run.seconds for run in runs):.0f}",
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="the folder `results` of PEFT's benchmark")
    parser.add_argument("--first", action="store_true", help="of the first cut")
    given = parser.parse_args()
    print(report(given.results, first=given.first))


if __name__ == "__main__":
    main()
