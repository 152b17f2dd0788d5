"""Tables of notes/2026-12-03-groups.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from few.start_tables import interval

Row = Mapping[str, Any]
TYPED = ("orders", "words", "countries", "layouts", "raters")
UNTYPED = ("thresholds", "patients")
STARTED = (*TYPED, *UNTYPED, "renames")
METHODS = {
    "found": "**K groups found**, nearest (`found`)",
    "named": "groups by name, nearest (`named`)",
    "found loras": "a LoRA for each group found, nearest",
    "known": "known types, a LoRA each (`known`)",
    "mixture": "weighted sum of members (`mixture`)",
    "zero": "core from zero (`zero`)",
    "means": "the means of a group's cores, nothing trained again",
    "continued": "these means and A, B, trained on (`continued`)",
    "wide": "K groups found, cores of rank 16",
    "warm": "core from the weighted sum",
    "joint": "one LoRA for all, as it is",
    "trained on": "one LoRA for all, trained on",
    "fresh": "fresh LoRA r=8",
}
RIVALS = ("found loras", "mixture", "zero", "joint", "trained on", "fresh")
BEHIND = -2.0
"""Points of the mean difference below which a method counts as behind."""
HALF = 4
"""Of eight examples: rule 4 takes `mixture` if it has at least so many right."""


@dataclass(frozen=True)
class Judged:
    """The accuracy of newcomers in percent, and which libraries they are of."""

    accuracy: np.ndarray
    libraries: tuple[int, ...]


def row_of(rows: Sequence[Row], family: str, library: int, method: str) -> Row | None:
    """Return a cell, at the rate that is better for the newcomers of library 0."""
    at = [
        row
        for row in rows
        if row["part"] == "newcomers" and row["family"] == family and row["method"] == method
    ]
    first = [row for row in at if row["library"] == 0]
    if not first:
        return None
    rate = max(first, key=lambda row: sum(row["right"])).get("rate")
    for row in at:
        if row["library"] == library and row.get("rate") == rate:
            return row
    return None


def accuracy(row: Row) -> np.ndarray:
    """Return the accuracy of each newcomer in percent."""
    return 100 * np.array(row["right"], float) / row["asked"]


def judged(rows: Sequence[Row], family: str, method: str) -> Judged | None:
    """Return the newcomers of all libraries that have a method."""
    parts, libraries = [], []
    for library in (0, 1):
        row = row_of(rows, family, library, method)
        if row is not None:
            parts.append(accuracy(row))
            libraries.append(library)
    if not parts:
        return None
    return Judged(np.concatenate(parts), tuple(libraries))


def paired(rows: Sequence[Row], family: str, mine: str, other: str) -> Judged | None:
    """Return the differences of two methods over the newcomers of the libraries that have both."""
    parts, libraries = [], []
    for library in (0, 1):
        first, second = (row_of(rows, family, library, method) for method in (mine, other))
        if first is not None and second is not None:
            parts.append(accuracy(first) - accuracy(second))
            libraries.append(library)
    if not parts:
        return None
    return Judged(np.concatenate(parts), tuple(libraries))


def difference(gaps: np.ndarray) -> str:
    """Return a mean difference with its interval."""
    low, high = interval(gaps)
    return f"{gaps.mean():+.1f} ({low:+.1f} to {high:+.1f})"


def verdict(gaps: np.ndarray) -> str:
    """Return whether a method is ahead, level or behind, as registered."""
    low, high = interval(gaps)
    if low > 0:
        return "ahead"
    if high < 0 or gaps.mean() < BEHIND:
        return "behind"
    return "level"


def with_results(rows: Sequence[Row], families: Sequence[str], method: str) -> list[str]:
    return [family for family in families if judged(rows, family, method)]


def accuracy_table(rows: Sequence[Row], families: Sequence[str]) -> Iterator[str]:
    families = with_results(rows, families, "found")
    yield "| correct, %: library 0; 1 | " + " | ".join(families) + " |"
    yield "|---|" + "---:|" * len(families)
    for method, label in METHODS.items():
        values = []
        for family in families:
            each = [row_of(rows, family, library, method) for library in (0, 1)]
            values.append("; ".join(f"{accuracy(row).mean():.1f}" for row in each if row))
        if any(values):
            yield f"| {label} | " + " | ".join(values) + " |"
    yield ""


def claim_table(rows: Sequence[Row], families: Sequence[str], mine: str = "found") -> Iterator[str]:
    families = with_results(rows, families, mine)
    yield f"| `{mine}` minus | " + " | ".join(families) + " |"
    yield "|---|" + "---|" * len(families)
    others = list(RIVALS)
    if mine == "found":
        others += ["named", "known", "means", "continued", "wide"]
    for rival in others:
        values = []
        for family in families:
            gaps = paired(rows, family, mine, rival)
            text = ""
            if gaps is not None:
                text = f"{difference(gaps.accuracy)} {verdict(gaps.accuracy)}"
            values.append(text)
        if any(values):
            yield f"| {METHODS[rival]} | " + " | ".join(values) + " |"
    yield ""


def named_table(rows: Sequence[Row]) -> Iterator[str]:
    yield "| `named` minus `known` | libraries | difference |"
    yield "|---|---:|---|"
    means = []
    for family in TYPED:
        gaps = paired(rows, family, "named", "known")
        if gaps is not None:
            means.append(gaps.accuracy.mean())
            yield f"| {family} | {len(gaps.libraries)} | {difference(gaps.accuracy)} |"
    if means:
        yield f"| mean of families | | {np.mean(means):+.1f} |"
    yield ""


def scores_table(rows: Sequence[Row]) -> Iterator[str]:
    yield "| family, library | types | K = 1 | K = 2 | K = 3 | K = 4 | proposed | agreement at K = types |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for row in rows:
        if row["part"] != "scores":
            continue
        types = {"layouts": 4, "raters": 2}.get(row["family"], 3)
        types = 1 if row["family"] in UNTYPED else types
        values = []
        for count, correct, ahead, error in row["scores"]:
            text = f"{100 * correct:.0f}"
            if count > 1:
                text += f" ({100 * ahead:+.0f} ± {100 * error:.0f})"
            values.append(text)
        matches = f"{100 * row['agreements'][types - 1]:.0f}%" if types > 1 else ""
        name = f"{row['family']}, {row['library']}"
        number = types if types > 1 else "none"
        yield f"| {name} | {number} | {' | '.join(values)} | {row['proposed']} | {matches} |"
    yield ""


def start_shortfalls(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Return how far each rule of a start is below the better of `mixture` and `zero`, by family."""
    shortfalls: dict[str, dict[str, float]] = {}
    for family in STARTED:
        members, zero, chosen = [], [], []
        for library in (0, 1):
            mixture = row_of(rows, family, library, "mixture")
            trained = [
                row
                for row in rows
                if row["part"] == "newcomers"
                and (row["family"], row["library"]) == (family, library)
                and row["method"] == "zero"
                and row["rate"] == 1e-2
            ]
            if mixture is None or not trained:
                continue
            members.append(accuracy(mixture))
            zero.append(accuracy(trained[0]))
            takes = np.array(mixture["on_examples"]) >= HALF
            chosen.append(np.where(takes, members[-1], zero[-1]))
        if not members:
            continue
        means = {
            "mixture": float(np.mean(members)),
            "zero": float(np.mean(zero)),
            "half right": float(np.mean(chosen)),
        }
        best = max(means["mixture"], means["zero"])
        shortfalls[family] = {rule: best - mean for rule, mean in means.items()}
        warm = row_of(rows, family, 0, "warm")
        if warm is not None:
            # Of library 0 alone.
            best = max(float(members[0].mean()), float(zero[0].mean()))
            shortfalls[family]["mixture, trained on"] = best - float(accuracy(warm).mean())
    return shortfalls


def start_table(rows: Sequence[Row]) -> Iterator[str]:
    shortfalls = start_shortfalls(rows)
    yield "| shortfall, points | " + " | ".join(shortfalls) + " | mean |"
    yield "|---|" + "---:|" * (len(shortfalls) + 1)
    for rule in ("mixture", "zero", "half right", "mixture, trained on"):
        values = [by_rule[rule] for by_rule in shortfalls.values() if rule in by_rule]
        each = [
            f"{by_rule[rule]:.1f}" if rule in by_rule else "" for by_rule in shortfalls.values()
        ]
        if values:
            yield f"| {rule} | {' | '.join(each)} | {np.mean(values):.2f} |"
    yield ""


def settings_table(rows: Sequence[Row]) -> Iterator[str]:
    yield "| family | steps | rate | loss: first | last | members | newcomers by `mixture` | seconds |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for row in rows:
        if row["part"] != "library" or row["kind"] != "core" or row["library"]:
            continue
        newcomers = ""
        for cell in rows:
            if cell["part"] == "newcomers" and cell["method"] == "mixture of setting":
                same = [cell[name] == row[name] for name in ("family", "steps", "rate")]
                if all(same):
                    newcomers = f"{accuracy(cell).mean():.1f}"
        if not newcomers:
            continue
        losses = f"{row['first']:.2f} | {row['last']:.2f}"
        members = f"{100 * row['members']:.1f}"
        start = f"| {row['family']} | {row['steps']} | {row['rate']:g} | {losses}"
        yield f"{start} | {members} | {newcomers} | {row['cpu_s']:.0f} |"
    yield ""


def costs_table(rows: Sequence[Row]) -> Iterator[str]:
    """The mean processor seconds of a training, and of judging 24 newcomers."""
    yield "| | processor seconds: training on members | 24 newcomers |"
    yield "|---|---:|---:|"
    library = {
        "mixture": "core",
        "zero": "core",
        "means": "the means of a group's cores, nothing trained again",
        "continued": "these means and A, B, trained on (`continued`)",
        "wide": "K groups found, cores of rank 16",
        "warm": "core",
        "trained on": "joint",
        "fresh": "",
    }
    for method, label in METHODS.items():
        kind = library.get(method, method)
        trained = [
            row["cpu_s"]
            for row in rows
            if row["part"] == "library"
            and row["kind"] == kind
            and row["steps"] == 80
            and "same_as" not in row
        ]
        answered = [
            row["cpu_s"] for row in rows if row["part"] == "newcomers" and row["method"] == method
        ]
        if not answered:
            continue
        first = f"{np.mean(trained):.0f}" if trained else ""
        if method in ("found", "found loras") and trained:
            core = [
                row["cpu_s"]
                for row in rows
                if row["part"] == "library" and row["kind"] == "core" and row["steps"] == 80
            ]
            first = f"{np.mean(core):.0f} + {np.mean(trained):.0f}"
        yield f"| {label} | {first} | {np.mean(answered):.0f} |"
    scores = [row["cpu_s"] for row in rows if row["part"] == "scores"]
    if scores:
        yield f"| scores of K = 1 to 4 | {np.mean(scores):.0f} | |"
    yield ""


def lines(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of the tables."""
    yield "### Typed families"
    yield ""
    yield from accuracy_table(rows, TYPED)
    yield from claim_table(rows, TYPED)
    yield from named_table(rows)
    yield "### Families without types, K = 3"
    yield ""
    yield from accuracy_table(rows, UNTYPED)
    yield from claim_table(rows, UNTYPED)
    yield "### Scores of numbers of groups"
    yield ""
    yield from scores_table(rows)
    yield "### How a newcomer starts, 8 examples"
    yield ""
    yield from start_table(rows)
    yield "### Steps and learning rates of `library_core`, library 0"
    yield ""
    yield from settings_table(rows)
    yield "### Costs"
    yield ""
    yield from costs_table(rows)
