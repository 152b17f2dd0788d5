"""The results as tables between the marks of README.md, and accuracy against parameters as a plot."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sweep.methods import ABLATIONS, FRONT, MAIN, METHODS, SIZES
from sweep.paired import Gap, holm, paired
from sweep.results import Job, Results
from sweep.search import chosen, rates, score
from sweep.tasks import MANY_TASKS, TASKS

Row = Mapping[str, Any]
REFERENCE = "lora"


def unmask(row: Row) -> list[int]:
    """Of each test row whether it was right, 1 or 0; the inverse of `training.bitmask`."""
    digits = row["test_right"]
    bits = f"{int(digits, 16):0{4 * len(digits)}b}"
    return [int(bit) for bit in bits[: row["test_rows"]]]


def table(heads: str, rows: Iterable[Sequence[object]]) -> str:
    """Markdown; the first column is of words, the others of figures."""
    lines = [" | ".join(map(str, row)) for row in rows]
    count = heads.count("|")
    return "\n".join([f"| {heads} |", "|---" + "|---:" * count + "|", *(f"| {x} |" for x in lines)])


def mean(rows: Sequence[Row], name: str) -> float:
    return 100 * statistics.fmean(row[name] for row in rows)


def accuracy(rows: Sequence[Row]) -> str:
    """In the mean over seeds, with the standard deviation."""
    spread = statistics.stdev(100 * r["test_accuracy"] for r in rows) if len(rows) > 1 else 0
    return f"{mean(rows, 'test_accuracy'):.1f} ± {spread:.1f} ({len(rows)})"


def gap_of(rows: Sequence[Row], others: Sequence[Row]) -> Gap:
    """By the seeds that both have."""
    theirs = {row["seed"]: row for row in others}
    pairs = [(unmask(row), unmask(theirs[row["seed"]])) for row in rows if row["seed"] in theirs]
    return paired(*zip(*pairs, strict=True))


def finished(results: Results, task: str, size: str) -> dict[str, list[dict[str, Any]]]:
    """By method, the runs at the chosen rate, of those whose search is over."""
    found = {}
    for method in METHODS:
        if (rate := chosen(results, task, method, size)) is not None:
            found[method] = list(rates(results, task, method, size)[rate])
    return found


def compared(gaps: Mapping[str, Gap]) -> dict[str, list[str]]:
    """Of each difference: points, interval, corrected probability, and the seeds that would decide it."""
    corrected = holm([gap.p for gap in gaps.values()])
    found = {}
    for (name, gap), p in zip(gaps.items(), corrected, strict=True):
        low, high = (f"{100 * end:+.1f}" for end in gap.interval())
        needed = gap.seeds_needed(len(gaps))
        seeds = "" if p < 0.05 else f"{needed:,}" if needed else "more rows"
        found[name] = [f"{100 * gap.mean:+.1f}", f"{low} to {high}", f"{p:.2g}", seeds]
    return found


def task_table(results: Results, task: str, size: str) -> str:
    """One task's results, a method a line, each beside LoRA."""
    found = finished(results, task, size)
    if REFERENCE not in found:
        return ""
    reference = found[REFERENCE]
    others = [name for name in found if name in MAIN and name != REFERENCE]
    versus = compared({name: gap_of(found[name], reference) for name in others})
    base = results.get(Job(task, "base", 0.0, 0, size))
    lines = []
    for name in [REFERENCE, *others]:
        rows = found[name]
        share = 100 * rows[0]["parameters"] / reference[0]["parameters"]
        lines.append(
            [
                METHODS[name].label,
                f"{rows[0]['parameters']:,}",
                f"{share:.1f}%",
                f"{rows[0]['bytes']:,}",
                f"{rows[0]['rate']:g}",
                f"{mean(rows, 'validation_accuracy'):.1f}",
                accuracy(rows),
                *versus.get(name, [""] * 4),
            ]
        )
    heads = "method | parameters | of LoRA's | bytes | lr | validation | test | to LoRA | 95% | p | seeds"
    text = f"### {task}\n\n{table(heads, lines)}\n\n{reference[0]['test_rows']} test rows."
    if base:
        text += (
            f" Untrained, the model is right on {100 * base['test_accuracy']:.1f}%; always saying the"
            f" commonest answer is on {100 * base['commonest_answer']:.1f}%."
        )
    return text


def front_table(results: Results, size: str) -> str:
    """Accuracy on the headlines by parameters, each method beside LoRA of about as many."""
    found = finished(results, "headlines", size)
    gaps = {
        name: gap_of(found[name], found[names[0]])
        for names in zip(*FRONT.values(), strict=True)
        for name in names[1:]
        if name in found and names[0] in found
    }
    versus = compared(gaps)
    lines = [
        [
            place,
            METHODS[name].label,
            f"{found[name][0]['parameters']:,}",
            f"{found[name][0]['rate']:g}",
            accuracy(found[name]),
            *versus.get(name, [""] * 4),
        ]
        for place, names in zip(SIZES, zip(*FRONT.values(), strict=True), strict=True)
        for name in names
        if name in found
    ]
    heads = "about | method | parameters | lr | test | to LoRA | 95% | p | seeds"
    return f"### Accuracy against parameters, on the headlines\n\n{table(heads, lines)}"


def many_table(results: Results) -> str:
    """Many tasks on one base: what the adapters weigh, and how often they are right."""
    rows = [row for row in results.rows.values() if row["size"] == "many"]
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row["method"], {})[row["task"]] = row
    tasks = [task for task in MANY_TASKS if all(task in of for of in found.values())]
    if len(found) < 2 or not tasks:
        return ""
    methods = sorted(found, key=lambda name: name != "base")
    lines = [
        [task, *(f"{100 * found[name][task]['test_accuracy']:.1f}" for name in methods)]
        for task in tasks
    ]
    mine = [[found[name][task] for task in tasks] for name in methods]
    lines.append(["**mean**", *(f"**{mean(rows, 'test_accuracy'):.1f}**" for rows in mine)])
    weights = [sum(row.get("bytes", 0) for row in rows) for rows in mine]
    gaps = {
        name: [gap_of([found[name][task]], [found[REFERENCE][task]]) for task in tasks]
        for name in methods
        if name not in ("base", REFERENCE) and REFERENCE in found
    }
    told = [
        f"{METHODS[name].label} differs from LoRA by {100 * statistics.fmean(g.mean for g in of):+.1f} ±"
        f" {100 * math.sqrt(sum(g.error**2 for g in of)) / len(of):.1f} points in the mean over tasks"
        " (for rows alone: one seed)."
        for name, of in gaps.items()
    ]
    lines.append(
        ["bytes of all adapters", *(f"{weight:,}" if weight else "" for weight in weights)]
    )
    labels = [METHODS[name].label if name in METHODS else "untrained" for name in methods]
    heads = " | ".join(["task", *labels])
    return "\n\n".join(["### Many tasks on one base", table(heads, lines), *told])


def search_table(results: Results, size: str) -> str:
    """The validation accuracy at each rate tried, and how many seeds it is the mean of."""
    lines = []
    for task in TASKS:
        for name, method in METHODS.items():
            tried = rates(results, task, name, size)
            best = chosen(results, task, name, size) if tried else None
            texts = [
                f"{'**' * (rate == best)}{rate:g}{'**' * (rate == best)}: {100 * score(rows)[0]:.1f}"
                + (f" ({len(rows)} seeds)" if len(rows) > 1 else "")
                for rate, rows in tried.items()
            ]
            if texts:
                lines.append([task, method.label, ", ".join(texts)])
    heads = "task | method | validation accuracy by learning rate"
    return f"### Learning rates\n\n{table(heads, lines)}"


def ablation_table(results: Results, size: str) -> str:
    """Each ablation beside the method that it changes, at the same rate and seeds."""
    lines = []
    for group, variants in ABLATIONS.items():
        for task in TASKS:
            for name, params in variants:
                rate = chosen(results, task, name, size)
                rows = [
                    row
                    for row in results.rows.values()
                    if (row["task"], row["method"], row["rate"], row["size"])
                    == (task, name, rate, size)
                ]
                changed = [row for row in rows if row["params"] == params]
                if not changed:
                    continue
                gap = gap_of(changed, [row for row in rows if not row["params"]])
                sets = ", ".join(f"`{key}={value}`" for key, value in params.items())
                lines.append(
                    [
                        group,
                        task,
                        METHODS[name].label,
                        sets,
                        f"{changed[0]['parameters']:,}",
                        accuracy(changed),
                        f"{100 * gap.mean:+.1f} ± {100 * gap.error:.1f}",
                    ]
                )
    heads = "ablation | task | method | set | parameters | test | against the method, paired"
    return f"### The paper's ablations\n\n{table(heads, lines)}"


def machines(results: Results) -> str:
    """Where the rows are from; some have no date."""
    places: dict[str, int] = {}
    for row in results.rows.values():
        versions = ", ".join(f"{name} {number}" for name, number in row["versions"].items())
        place = f"{row['machine']} ({versions})"
        places[place] = places.get(place, 0) + 1
    return "\n".join(f"- {count} rows: {place}." for place, count in places.items())


def plot(results: Results, size: str, path: Path) -> None:
    """Test accuracy on the headlines against trainable parameters, with 95% intervals."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams |= {"svg.hashsalt": "quality", "svg.fonttype": "none"}
    found = finished(results, "headlines", size)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for method, names in FRONT.items():
        sides = [found[name] for name in names if name in found]
        if not sides:
            continue
        nothing = [[0] * side[0]["test_rows"] for side in sides]
        gaps = [
            paired([unmask(row) for row in side], [zero] * len(side))
            for side, zero in zip(sides, nothing, strict=True)
        ]
        axes.errorbar(
            [side[0]["parameters"] for side in sides],
            [100 * gap.mean for gap in gaps],
            yerr=[100 * (gap.interval()[1] - gap.mean) for gap in gaps],
            fmt="o-",
            capsize=3,
            label=method.replace("`", ""),
        )
    axes.set(xscale="log", xlabel="trainable parameters", ylabel="test accuracy, %")
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


def put(path: Path, text: str) -> None:
    """Replace what stands between the marks of a file."""
    start, end = "<!-- tables -->\n", "\n<!-- /tables -->"
    before, _, rest = path.read_text().partition(start)
    _, _, after = rest.partition(end)
    path.write_text(f"{before}{start}{text}{end}{after}")


def tables(results: Results, size: str) -> str:
    """All of them."""
    parts = [
        *(task_table(results, task, size) for task in TASKS),
        front_table(results, size),
        many_table(results),
        ablation_table(results, size),
        search_table(results, size),
        f"### Where\n\n{machines(results)}",
    ]
    return "\n\n".join(part for part in parts if part)


def write(results: Results, size: str, folder: Path) -> None:
    """Print the tables, put them into the folder's README.md, and the plot beside it."""
    text = tables(results, size)
    print(text)
    put(folder / "README.md", text)
    plot(results, size, folder / "front.svg")
