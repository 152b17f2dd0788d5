"""The results as tables in README.md, and as a plot of accuracy against parameters."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sweep.data import TASKS
from sweep.methods import ABLATIONS, BUDGET, METHODS
from sweep.results import Job, Results
from sweep.search import chosen, rates, score

Row = Mapping[str, Any]
REFERENCE = "lora"


def unmask(row: Row) -> list[int]:
    """Of each test row whether it was right, 1 or 0; the inverse of `training.bitmask`."""
    digits = row["test_right"]
    bits = f"{int(digits, 16):0{4 * len(digits)}b}"
    return [int(bit) for bit in bits[: row["test_rows"]]]


def paired(rows: Sequence[Row], others: Sequence[Row]) -> tuple[float, float]:
    """How much more often `rows` are right than `others` on the same test rows, and its standard error.

    Each side is the mean over its runs. The error is that of drawing the test rows, and that of drawing
    the seeds, where a side has several: together rather too large, for a run's own chance with single
    rows counts in both.
    """
    mine, theirs = (
        [statistics.fmean(bits) for bits in zip(*map(unmask, side), strict=True)]
        for side in (rows, others)
    )
    gaps = [a - b for a, b in zip(mine, theirs, strict=True)]
    seeds = sum(deviation(side) ** 2 / len(side) for side in (rows, others))
    return statistics.fmean(gaps), math.sqrt(statistics.variance(gaps) / len(gaps) + seeds)


def finished(results: Results, size: str) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """By task and method, the runs at the chosen rate, of methods whose search is over."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for task in TASKS:
        for method in METHODS:
            if (rate := chosen(results, task, method, size)) is not None:
                rows = rates(results, task, method, size)[rate]
                found.setdefault(task, {})[method] = list(rows)
    return found


def mean(rows: Sequence[Row], name: str) -> float:
    return statistics.fmean(row[name] for row in rows)


def deviation(rows: Sequence[Row]) -> float:
    """Of the test accuracy over seeds; 0 of a single run."""
    return statistics.stdev(row["test_accuracy"] for row in rows) if len(rows) > 1 else 0.0


def best_bishare(methods: Mapping[str, Sequence[Row]]) -> str | None:
    """The Bi-Share method with the best mean validation accuracy: the test part has no say."""
    names = [name for name in methods if METHODS[name].bishare]
    return max(names, key=lambda name: mean(methods[name], "validation_accuracy"), default=None)


def task_table(
    task: str, methods: Mapping[str, list[dict[str, Any]]], speed: Row, base: Row | None
) -> str:
    """One task's results, a method a line."""
    best = best_bishare(methods)
    reference = methods.get(REFERENCE)
    lines = [
        "| method | parameters | of LoRA's | bytes | lr | validation | test | to LoRA | steps/s | peak |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, rows in methods.items():
        label = METHODS[name].label
        parameters = rows[0]["parameters"]
        share = f"{100 * parameters / reference[0]['parameters']:.1f}%" if reference else ""
        spread = f" ± {100 * deviation(rows):.1f}" if len(rows) > 1 else ""
        seeds = "" if len(rows) == 3 else f" ({len(rows)} seed{'s'[: len(rows) - 1]})"
        gap = ""
        if reference and name != REFERENCE:
            difference, error = paired(rows, reference)
            gap = f"{100 * difference:+.1f} ± {100 * error:.1f}"
        quick = speed.get(name)
        pace = f"{quick['steps_per_s']:.2f}" if quick else ""
        peak = f"{quick['peak_bytes'] / 2**20:,.0f} MiB" if quick else ""
        lines.append(
            f"| {f'**{label}**' if name == best else label} | {parameters:,} | {share}"
            f" | {rows[0]['bytes']:,} | {rows[0]['rate']:g} | {100 * mean(rows, 'validation_accuracy'):.1f}"
            f" | {100 * mean(rows, 'test_accuracy'):.1f}{spread}{seeds} | {gap}"
            f" | {pace} | {peak} |"
        )
    rows = next(iter(methods.values()))
    count, accuracy = rows[0]["test_rows"], mean(rows, "test_accuracy")
    noise = 100 * math.sqrt(accuracy * (1 - accuracy) / count)
    untrained = (
        f" Untrained, the model is right on {100 * base['test_accuracy']:.1f}%; always saying the commonest"
        f" answer is on {100 * base['commonest_answer']:.1f}%."
        if base
        else ""
    )
    return (
        f"### {task}\n\n"
        + "\n".join(lines)
        + f"\n\n{count} test rows: one accuracy's standard error is about {noise:.1f} points.{untrained}"
    )


def search_table(results: Results, size: str) -> str:
    """The validation accuracy at each rate tried, and how many seeds it is the mean of."""
    lines = ["| task | method | validation accuracy by learning rate |", "|---|---|---|"]
    for task in TASKS:
        for name, method in METHODS.items():
            best = chosen(results, task, name, size)
            tried = [
                f"{'**' * (rate == best)}{rate:g}{'**' * (rate == best)}: {100 * score(rows)[0]:.1f}"
                + (f" ({len(rows)} seeds)" if len(rows) > 1 else "")
                for rate, rows in rates(results, task, name, size).items()
            ]
            if tried:
                lines.append(f"| {task} | {method.label} | {', '.join(tried)} |")
    return "\n".join(lines)


def ablation_table(results: Results, size: str, seeds: int) -> str:
    """Each ablation beside the method that it changes, at the same rate and seeds."""
    lines = [
        "| ablation | task | method | set | parameters | validation | test | against the method, paired |",
        "|---|---|---|---|---:|---:|---:|---:|",
    ]
    for group, variants in ABLATIONS.items():
        for task in TASKS:
            for name, params in variants:
                rate = chosen(results, task, name, size)
                if rate is None:
                    continue
                pairs = [
                    (changed, plain)
                    for seed in range(seeds)
                    if (changed := results.get(Job(task, name, rate, seed, size, params)))
                    and (plain := results.get(Job(task, name, rate, seed, size)))
                ]
                if pairs:
                    rows, plain = zip(*pairs, strict=True)
                    gap, error = paired(rows, plain)
                    sets = ", ".join(f"`{key}={value}`" for key, value in params.items())
                    lines.append(
                        f"| {group} | {task} | {METHODS[name].label} | {sets} | {rows[0]['parameters']:,}"
                        f" | {100 * mean(rows, 'validation_accuracy'):.1f}"
                        f" | {100 * mean(rows, 'test_accuracy'):.1f} | {100 * gap:+.1f} ± {100 * error:.1f} |"
                    )
    return "\n".join(lines) if len(lines) > 2 else "None was run yet."


def goal(found: Mapping[str, Mapping[str, list[dict[str, Any]]]]) -> str:
    """Of each task, how the best Bi-Share method compares with LoRA."""
    lines = []
    for task, methods in found.items():
        best = best_bishare(methods)
        if best is None or REFERENCE not in methods:
            continue
        rows, reference = methods[best], methods[REFERENCE]
        gap, error = paired(rows, reference)
        share = 100 * rows[0]["parameters"] / reference[0]["parameters"]
        verdict = "met" if gap >= 0 and share <= BUDGET else "missed"
        lines.append(
            f"- {task}: {METHODS[best].label} {100 * mean(rows, 'test_accuracy'):.2f}% against LoRA's"
            f" {100 * mean(reference, 'test_accuracy'):.2f}% ({100 * gap:+.2f} ± {100 * error:.2f} points),"
            f" with {share:.1f}% of its parameters: **{verdict}**."
        )
    return "\n".join(lines)


def put(path: Path, name: str, text: str) -> None:
    """Replace what stands between the markers of `name` in a file."""
    start, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
    before, _, rest = path.read_text().partition(start)
    _, _, after = rest.partition(end)
    path.write_text(f"{before}{start}{text}{end}{after}")


def plot(found: Mapping[str, Mapping[str, list[dict[str, Any]]]], path: Path) -> None:
    """Test accuracy against trainable parameters, with the standard deviation over seeds."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "quality"
    figure = Figure(figsize=(5 * len(found), 4), layout="constrained")
    for axes, (task, methods) in zip(
        figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True
    ):
        for name, rows in methods.items():
            method = METHODS[name]
            color = "tab:blue" if method.bishare else "tab:orange" if method.peft else "black"
            x, y = rows[0]["parameters"], 100 * mean(rows, "test_accuracy")
            axes.errorbar(x, y, yerr=100 * deviation(rows), fmt="o", color=color, capsize=3)
            # Out of the way of a point close to its right.
            close = any(x < other[0]["parameters"] < 1.5 * x for other in methods.values())
            offset, side = ((-5, 4), "right") if close else ((5, 4), "left")
            axes.annotate(
                name, (x, y), textcoords="offset points", xytext=offset, ha=side, fontsize=8
            )
        if REFERENCE in methods:
            rows = methods[REFERENCE]
            axes.axhline(100 * mean(rows, "test_accuracy"), color="black", lw=0.6, ls=":")
            axes.axvline(BUDGET / 100 * rows[0]["parameters"], color="tab:blue", lw=0.6, ls=":")
        axes.set(title=task, xscale="log", xlabel="trainable parameters", ylabel="test accuracy, %")
        axes.margins(x=0.25)
    figure.savefig(path, metadata={"Date": None})


def summarise(results: Results, folder: Path, size: str, seeds: int) -> None:
    """Write the tables into the folder's README.md, and the plot beside it."""
    readme, stored = folder / "README.md", folder / "speed.json"
    speed = json.loads(stored.read_text()) if stored.exists() else {"methods": {}}
    found = finished(results, size)
    if not found:
        print("no search of a learning rate is over yet")
        return
    tables = [
        task_table(task, methods, speed["methods"], results.get(Job(task, "base", 0.0, 0, size)))
        for task, methods in found.items()
    ]
    put(readme, "goal", goal(found))
    put(readme, "tables", "\n\n".join(tables))
    put(readme, "search", search_table(results, size))
    put(readme, "ablations", ablation_table(results, size, seeds))
    row = next(iter(results.rows.values()))
    versions = ", ".join(f"{name} {number}" for name, number in row["versions"].items())
    put(readme, "machine", f"{row['machine']}; {versions}.")
    plot(found, folder / "accuracy.svg")
    print(f"wrote {readme} and accuracy.svg")
