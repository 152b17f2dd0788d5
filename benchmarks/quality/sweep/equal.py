"""LoRA of the same bytes as `bishare_ke_ab`, and adapters stored in fewer bits, in a registered order."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sweep.methods import METHODS
from sweep.paired import Gap, average
from sweep.results import Job, Results, Row
from sweep.running import circumstances
from sweep.tables import accuracy, gap_of, mean, table, told
from sweep.tasks import DECIDING

LORA_RATE = 2e-3
"""Of LoRA of rank 8 on each task, and of each LoRA on the headlines, as the validation part chose it."""
KE_RATES = {"headlines": 5e-3, "social_iqa": 2e-3, "languages": 5e-3}
SHARED_ALONE = {"r_local": 0}
STORED = (3, 4)
"""The seeds whose adapters are also tested in fewer bits."""
# A task, a method, and its seeds; "shared" is bishare_ke_ab without its private tier.
ORDER = """
languages lora_2 3 0 1 2
languages ke_1_r 3
languages lora 3
languages lora_1 3
languages lora_2 4 5
languages shared 0
headlines lora_2 3
social_iqa lora_2 3 0
languages lora_2 6 7
social_iqa lora_2 1 2
headlines lora_2 5 6
social_iqa lora_2 5 6 7 4
headlines lora_2 7 4
headlines shared 0
social_iqa shared 0
headlines ke_1_r 3
headlines lora 3
headlines lora_1 3
social_iqa ke_1_r 3
social_iqa lora 3
social_iqa lora_1 3
languages ke_1_r 4
languages lora 4
languages lora_1 4
headlines ke_1_r 4
headlines lora 4
headlines lora_1 4
social_iqa ke_1_r 4
social_iqa lora 4
social_iqa lora_1 4
"""
RIVAL, SPEC = "lora_2", "ke_1_r"
COMPARED = (SPEC, RIVAL, "lora", "lora_1")
# By the bits that LoRA r=2 is stored in: twice the rank takes as many in half of them.
LEVELS: dict[str, tuple[tuple[str, str], ...]] = {
    "16 bits": (
        (RIVAL, "bfloat16"),
        (SPEC, "bfloat16"),
        ("lora", "int4"),
        ("lora_1", "float32"),
    ),
    "8 bits": ((RIVAL, "int8"), (SPEC, "int8"), ("lora_1", "bfloat16")),
    "4 bits": ((RIVAL, "int4"), (SPEC, "int4"), ("lora_1", "int8")),
}
"""Methods and dtypes whose files are about as large; the others are compared with the first."""


def job_of(task: str, name: str, seed: int) -> Job:
    """Return a registered run; one whose first result exists is marked as a repetition."""
    if name == "shared":
        return Job(task, SPEC, KE_RATES[task], seed, params=SHARED_ALONE)
    rate = KE_RATES[task] if name == SPEC else LORA_RATE
    return Job(task, name, rate, seed, "again" if name in ("lora", SPEC) else "small")


def registered() -> Iterator[Job]:
    """Yield all runs, in order."""
    for line in ORDER.strip().splitlines():
        task, name, *seeds = line.split()
        yield from (job_of(task, name, int(seed)) for seed in seeds)


def left(results: Results) -> list[Job]:
    """Return the runs that are to be done."""
    return [job for job in registered() if job not in results]


def run_equal(results: Results, base: Path, wheels: Path) -> None:
    """Do the runs that are left, one by one."""
    from sweep.training import run

    todo = left(results)
    for number, job in enumerate(todo, 1):
        stored = job.seed in STORED and not job.params
        [row] = run([job], base, wheels, stored=stored)
        results.add(job, row | circumstances(1))
        print(
            f"[{len(todo) - number} left] {job} {job.size}: test {row['test_accuracy']:.4f}"
            + "".join(
                f", {form} {of['test_accuracy']:.4f}" for form, of in row.get("bits", {}).items()
            )
            + f", {row['cpu_s']:.0f} s of CPU",
            flush=True,
        )


def runs_of(results: Results, task: str, name: str) -> list[Row]:
    """Return the runs of a method on a task by seed, the first of each seed."""
    rate = KE_RATES[task] if name == SPEC else LORA_RATE
    jobs = (Job(task, name, rate, seed) for seed in range(8))
    return [results[job] for job in jobs if job in results]


def stored_runs(results: Results, task: str, name: str, form: str) -> dict[int, Row]:
    """Return by seed the runs that were also tested in fewer bits, as they were in one of the forms."""
    found = {}
    for seed in STORED:
        row: Mapping[str, Any] = results.get(job_of(task, name, seed), {})
        if "bits" in row:
            found[seed] = row if form == "float32" else {**row, **row["bits"][form]}
    return found


def bytes_table(results: Results) -> str:
    """Compare each method with LoRA r=2, on each task and on average."""
    lines: list[list[str]] = []
    gaps: dict[str, dict[str, Gap]] = {}
    for task in DECIDING:
        rivals = runs_of(results, task, RIVAL)
        for name in COMPARED:
            if not (rows := runs_of(results, task, name)):
                continue
            both = {row["seed"] for row in rows} & {row["seed"] for row in rivals}
            line = [
                task,
                METHODS[name].label,
                f"{rows[0]['parameters']:,}",
                accuracy(rows),
                "",
                "",
                "",
            ]
            if name != RIVAL and len(both) > 1:
                gap = gaps.setdefault(name, {})[task] = gap_of(rows, rivals)
                line[-3:] = [str(len(both)), *told({name: gap})[name][:2]]
            lines.append(line)
    for name, of in gaps.items():
        if len(of) > 1:
            total = told({name: average([*of.values()])})[name][:2]
            lines.append(["average", METHODS[name].label, "", "", f"{len(of)} tasks", *total])
    heads = "task | method | parameters | test (seeds) | paired | to LoRA r=2 | 95%"
    return table("At equal bytes", heads, lines) if gaps else ""


def losses_table(results: Results) -> str:
    """Compare each stored form with the same adapter in float32."""
    lines = []
    for name in COMPARED:
        tasks = {
            task: runs for task in DECIDING if (runs := stored_runs(results, task, name, "float32"))
        }
        gaps: dict[str, list[Gap]] = {}
        for task, whole in tasks.items():
            line = [
                METHODS[name].label,
                task,
                str(len(whole)),
                f"{mean([*whole.values()], 'test_accuracy'):.1f}",
            ]
            for form in ("bfloat16", "int8", "int4"):
                rows = stored_runs(results, task, name, form)
                gap = gap_of([*rows.values()], [*whole.values()])
                gaps.setdefault(form, []).append(gap)
                line.append(_points(gap))
            lines.append(line)
        if len(tasks) > 1:
            every = statistics.fmean(mean([*of.values()], "test_accuracy") for of in tasks.values())
            lines.append(
                [
                    METHODS[name].label,
                    "average",
                    "",
                    f"{every:.1f}",
                    *(_points(average(of)) for of in gaps.values()),
                ]
            )
    heads = "method | task | seeds | float32 | bfloat16 | int8 | int4"
    return (
        table("Fewer bits: points lost against the same adapter in float32", heads, lines)
        if lines
        else ""
    )


def _points(gap: Gap) -> str:
    low, high = (100 * end for end in gap.interval())
    return f"{100 * gap.mean:+.1f} ({low:+.1f} to {high:+.1f})"


def levels_table(results: Results) -> str:
    """Compare methods whose files are about as large, on the tasks and seeds that both have."""
    lines = []
    for level, pairs in LEVELS.items():
        first, *_ = pairs
        for name, form in pairs:
            runs = {task: stored_runs(results, task, name, form) for task in DECIDING}
            theirs = {task: stored_runs(results, task, *first) for task in DECIDING}
            tasks = [task for task in DECIDING if runs[task].keys() & theirs[task].keys()]
            if not tasks:
                continue
            rows = [*runs[tasks[0]].values()]
            both = ", ".join(
                f"{task} {len(runs[task].keys() & theirs[task].keys())}" for task in tasks
            )
            line = [level, METHODS[name].label, form, f"{rows[0]['bytes']:,}", both]
            line.append(
                f"{statistics.fmean(mean([*runs[task].values()], 'test_accuracy') for task in tasks):.1f}"
            )
            gaps = (
                [] if (name, form) == first else [_gap(runs[task], theirs[task]) for task in tasks]
            )
            lines.append([*line, _points(average(gaps)) if gaps else ""])
    heads = "LoRA r=2 at | method | stored as | bytes | seeds | average | to the first of its size (95%)"
    return table("At equal bits", heads, lines) if lines else ""


def _gap(mine: Mapping[int, Row], theirs: Mapping[int, Row]) -> Gap:
    return gap_of([row for seed, row in mine.items() if seed in theirs], [*theirs.values()])


def repeats(results: Results) -> str:
    """Say how far repetitions are from the first results of the same jobs."""
    pairs: Sequence[tuple[Row, Row]] = [
        (results[job], results[first])
        for job in registered()
        if job.size == "again"
        and job in results
        and (first := Job(job.task, job.method, job.rate, job.seed)) in results
    ]
    if not pairs:
        return ""
    shifts = ", ".join(
        f"{now['task']} {METHODS[now['method']].label} seed {now['seed']}"
        f" {100 * (now['test_accuracy'] - before['test_accuracy']):+.1f}"
        for now, before in pairs
    )
    return f"Repeated runs against their first results, in points: {shifts}."


def equal_tables(results: Results) -> str:
    """Return all of them."""
    parts = bytes_table(results), losses_table(results), levels_table(results), repeats(results)
    return "\n\n".join(part for part in parts if part)
