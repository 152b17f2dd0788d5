"""Write the results as tables between a page's marks, and plot accuracy against parameters."""

from __future__ import annotations

import itertools
import re
import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from sweep.methods import ABLATIONS, FRONT, MAIN, METHODS, SIZES, TOGETHER
from sweep.paired import Gap, average, holm, paired
from sweep.results import Job, Results, Row
from sweep.search import finished, rates, score
from sweep.tasks import DECIDING, MANY_TASKS, TASKS

Runs = Mapping[str, Sequence[Row]]
"""By method, its runs at one rate."""
REFERENCE = "lora"


def unmask(row: Row) -> list[int]:
    """Return of each test row whether it was right, 1 or 0; the inverse of `training.bitmask`."""
    digits = row["test_right"]
    bits = f"{int(digits, 16):0{4 * len(digits)}b}"
    return [int(bit) for bit in bits[: row["test_rows"]]]


def table(title: str, heads: str, rows: Iterable[Sequence[object]]) -> str:
    """Return Markdown; the first column is of words, the others of figures."""
    lines = [heads, *(" | ".join(map(str, row)) for row in rows)]
    head, *body = (f"| {line} |" for line in lines)
    return "\n".join([f"### {title}\n", head, "|---" + "|---:" * heads.count("|") + "|", *body])


def mean(rows: Sequence[Row], name: str) -> float:
    """Return the mean of a column, in per cent."""
    return 100 * statistics.fmean(row[name] for row in rows)


def accuracy(rows: Sequence[Row]) -> str:
    """Return it in the mean over seeds, with the standard deviation."""
    spread = statistics.stdev(100 * r["test_accuracy"] for r in rows) if len(rows) > 1 else 0
    return f"{mean(rows, 'test_accuracy'):.1f} ± {spread:.1f} ({len(rows)})"


def gap_of(rows: Sequence[Row], others: Sequence[Row]) -> Gap:
    """Return how far apart two methods are, by the seeds that both have."""
    theirs = {row["seed"]: row for row in others}
    pairs = [(unmask(row), unmask(theirs[row["seed"]])) for row in rows if row["seed"] in theirs]
    return paired(*zip(*pairs, strict=True))


def compared(found: Runs, references: Mapping[str, str]) -> dict[str, list[str]]:
    """Return each method's difference to its reference, empty where it is its own or has not run."""
    gaps = {
        name: gap_of(rows, found[references[name]])
        for name, rows in found.items()
        if references.get(name, name) in found.keys() - {name}
    }
    return {name: [""] * 4 for name in found} | told(gaps)


def told(gaps: Mapping[str, Gap]) -> dict[str, list[str]]:
    """Return each difference in points, its interval, its probability and the seeds that would decide it.

    The probability is corrected for the number of differences.
    """
    texts = {}
    for name, p in zip(gaps, holm([gap.p for gap in gaps.values()]), strict=True):
        low, high = (f"{100 * end:+.1f}" for end in gaps[name].interval())
        needed = gaps[name].seeds_needed(len(gaps))
        seeds = "" if p < 0.05 else f"{needed:,}" if needed else "more rows"
        texts[name] = [f"{100 * gaps[name].mean:+.1f}", f"{low} to {high}", f"{p:.2g}", seeds]
    return texts


def columns(name: str, rows: Sequence[Row]) -> list[str]:
    """Return a method, its parameters, its rate and its accuracy."""
    first = rows[0]
    return [METHODS[name].label, f"{first['parameters']:,}", f"{first['rate']:g}", accuracy(rows)]


def task_table(results: Results, task: str) -> str:
    """Return one task's results, with one line per method, relative to LoRA."""
    found = {name: rows for name, rows in finished(results, task).items() if name in MAIN}
    if REFERENCE not in found:
        return ""
    versus = compared(found, dict.fromkeys(found, REFERENCE))
    most = found[REFERENCE][0]["parameters"]
    lines = []
    for name, rows in found.items():
        label, count, rate, test = columns(name, rows)
        share = f"{100 * rows[0]['parameters'] / most:.1f}%"
        validation = f"{mean(rows, 'validation_accuracy'):.1f}"
        size = f"{rows[0]['bytes']:,}"
        lines.append([label, count, share, size, rate, validation, test, *versus[name]])
    heads = "method | parameters | of LoRA's | bytes | lr | validation | test | to LoRA | 95% | p | seeds"
    text = f"{table(task, heads, lines)}\n\n{found[REFERENCE][0]['test_rows']} test rows."
    if base := results.get(Job(task, "base", 0.0, 0)):
        text += (
            f" Untrained, the model is right on {100 * base['test_accuracy']:.1f}%; always saying the"
            f" commonest answer is on {100 * base['commonest_answer']:.1f}%."
        )
    return text


def overall_table(results: Results) -> str:
    """Return each method's mean over the deciding tasks on which it ran, and LoRA's over the same."""
    found = {task: finished(results, task) for task in DECIDING}
    pairs = {
        name: {
            task: (runs[name], runs[REFERENCE])
            for task, runs in found.items()
            if {name, REFERENCE} <= runs.keys()
        }
        for name in MAIN
        if name != REFERENCE
    }
    pairs = {name: both for name, both in pairs.items() if len(both) > 1}
    if not pairs:
        return ""
    versus = told(
        {name: average([gap_of(*p) for p in both.values()]) for name, both in pairs.items()}
    )
    lines = [
        [METHODS[name].label, ", ".join(both), *means(both.values()), *versus[name]]
        for name, both in pairs.items()
    ]
    heads = "method | over | test | LoRA's | to LoRA | 95% | p | seeds"
    return table("In the mean over tasks", heads, lines)


def means(pairs: Collection[tuple[Sequence[Row], Sequence[Row]]]) -> list[str]:
    """Return the mean over tasks of a method's accuracy, and of its reference's."""
    return [
        f"{statistics.fmean(mean(rows, 'test_accuracy') for rows in side):.1f}"
        for side in zip(*pairs, strict=True)
    ]


def front_table(results: Results) -> str:
    """Return accuracy on the headlines by parameters, for each method and a LoRA of about the same size."""
    found = finished(results, "headlines")
    places = dict(zip(SIZES, zip(*FRONT.values(), strict=True), strict=True))
    versus = compared(found, {name: lora for lora, *others in places.values() for name in others})
    lines = [
        [place, *columns(name, found[name]), *versus[name]]
        for place, names in places.items()
        for name in names
        if name in found
    ]
    heads = "about | method | parameters | lr | test | to LoRA | 95% | p | seeds"
    return table("Accuracy against parameters, on the headlines", heads, lines)


def together_table(results: Results) -> str:
    """Return many tasks in one run: what the adapters weigh, and how often they are right."""
    labels = {name: METHODS[name].label for name in TOGETHER}
    labels["lora_cut"] = f"{labels['lora']}, cut to r=2"
    found: dict[str, dict[str, list[Row]]] = {name: {} for name in labels}
    for job, row in results.items():
        if job.size == "together" and job.method in labels:
            found[job.method].setdefault(job.task, []).append(row)
    tasks = [task for task in MANY_TASKS if all(task in rows for rows in found.values())]
    if not tasks:
        return ""
    runs = {name: [rows[task] for task in tasks] for name, rows in found.items()}
    first, *others = runs
    versus = {first: [""] * 4} | told(
        {n: average([gap_of(*p) for p in zip(runs[n], runs[first], strict=True)]) for n in others}
    )
    weights = {name: sum(rows[0]["bytes"] for rows in of) for name, of in runs.items()}
    lines = [
        [
            labels[name],
            f"{weights[name]:,}",
            *(f"{mean(rows, 'test_accuracy'):.1f}" for rows in of),
            f"**{statistics.fmean(mean(rows, 'test_accuracy') for rows in of):.1f}**",
            *versus[name][:3],
        ]
        for name, of in runs.items()
    ]
    heads = ["adapters", "bytes of all", *tasks, "mean", f"to {labels[first]}", "95%", "p"]
    seeds = len(runs[first][0])
    return (
        table("Many tasks in one run", " | ".join(heads), lines)
        + f"\n\n{seeds} seeds; {runs[first][0][0]['test_rows']} test rows of each task."
    )


def ablation_table(results: Results) -> str:
    """Compare each ablation with the method that it changes, at the same learning rate and seeds.

    Every learning rate has a line, because later seeds may have changed the choice.
    """
    lines = []
    for group, variants in ABLATIONS.items():
        for task, (name, params) in itertools.product(TASKS, variants):
            wanted = task, name, params
            ran = [
                row for job, row in results.items() if (job.task, job.method, job.params) == wanted
            ]
            for rate in sorted({row["rate"] for row in ran}):
                changed = [row for row in ran if row["rate"] == rate]
                gap = gap_of(changed, rates(results, task, name)[rate])
                label, *middle = columns(name, changed)
                sets = ", ".join(f"`{key}={value}`" for key, value in params.items())
                points = f"{100 * gap.mean:+.1f} ± {100 * gap.error:.1f}"
                lines.append([group, task, label, sets, *middle, points])
    heads = "ablation | task | method | set | parameters | lr | test | against the method, paired"
    return table("The paper's ablations", heads, lines)


def search_table(results: Results) -> str:
    """Return the validation accuracy at each rate tried, and how many seeds it is the mean of."""
    lines = []
    for task in TASKS:
        chosen = {name: rows[0]["rate"] for name, rows in finished(results, task).items()}
        for name in METHODS:
            texts = []
            for rate, rows in rates(results, task, name).items():
                mark = "**" if rate == chosen.get(name) else ""
                seeds = f" ({len(rows)} seeds)" if len(rows) > 1 else ""
                texts.append(f"{mark}{rate:g}{mark}: {100 * score(rows)[0]:.1f}{seeds}")
            if texts:
                lines.append([task, METHODS[name].label, ", ".join(texts)])
    return table("Learning rates", "task | method | validation accuracy by learning rate", lines)


def machines(results: Results) -> str:
    """Return where the rows are from."""
    places = Counter(
        f"{row['machine']} ({', '.join(f'{name} {of}' for name, of in row['versions'].items())})"
        for row in results.values()
    )
    return "### Where\n\n" + "\n".join(f"- {n} rows: {place}." for place, n in places.items())


def plot(results: Results, path: Path) -> None:
    """Draw test accuracy on the headlines against trainable parameters, with 95% intervals."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams |= {"svg.hashsalt": "quality", "svg.fonttype": "none"}
    found = finished(results, "headlines")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for method, names in FRONT.items():
        sides = [found[name] for name in names if name in found]
        rights = [[unmask(row) for row in side] for side in sides]
        gaps = [paired(right, [[0] * len(row) for row in right]) for right in rights]
        if gaps:
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


def tables(results: Results) -> str:
    """Return all of them."""
    parts = [
        *(task_table(results, task) for task in TASKS),
        overall_table(results),
        front_table(results),
        together_table(results),
        ablation_table(results),
        search_table(results),
        machines(results),
    ]
    return "\n\n".join(part for part in parts if part)


def write(page: Path, mark: str, text: str) -> None:
    """Print a text, and write it between the marks of a page."""
    print(text)
    marked = re.compile(f"(?<=<!-- {mark} -->\n).*(?=\n<!-- /{mark} -->)", re.DOTALL)
    page.write_text(marked.sub(lambda _: text, page.read_text()))
