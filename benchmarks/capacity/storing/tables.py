"""Tables of the results: bits per parameter, and paired differences with corrected intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from scipy.stats import t as student

from storing.bases import BASES
from storing.jobs import Cell, Results, density, finished
from storing.law import border, gains, law, points
from storing.methods import methods

LEVEL = 0.05
WIN = 0.05
"""An interval above 0 is a win where the mean is at least this part of the other's bits."""

Rows = Sequence[Mapping[str, Any]]
UNSHARED = {
    **dict.fromkeys(
        (
            "pool_up",
            "pool_up_halves",
            "pool_up_core",
            "pool_up_no_gain",
            "a_up",
            "b_up",
            "own_pool_up",
        ),
        "lora_up",
    ),
    "pool_five": "lora",
    "pool_gate_up": "lora_gate_up",
    "pool_down": "lora_down",
    "pool_q": "lora_q",
}
"""Of what shares, the LoRA on the same modules; for all others it is the LoRA on the five kinds."""


class Difference(NamedTuple):
    """Of two methods' bits a parameter, as a part of the second one's: the mean, and its interval."""

    mean: float
    low: float
    high: float

    @property
    def wins(self) -> bool:
        """Whether the first is ahead by more than chance and by enough to count."""
        return self.low > 0 and self.mean >= WIN

    def __str__(self) -> str:
        bold = "**" if self.wins else ""
        return f"{bold}{self.mean:+.1%}{bold} ({self.low:+.1%} to {self.high:+.1%})"


def difference(mine: Rows, theirs: Rows, comparisons: int) -> Difference:
    """Compare two methods by runs of the same seeds.

    Args:
        mine: rows of a method.
        theirs: of the other one.
        comparisons: among so many the level is divided (Bonferroni).
    """
    others = {row["seed"]: density(row) for row in theirs}
    gaps = [density(row) - others[row["seed"]] for row in mine]
    scale = statistics.fmean(others.values())
    error = statistics.stdev(gaps) / math.sqrt(len(gaps))
    half = float(student.isf(LEVEL / comparisons / 2, len(gaps) - 1)) * error
    mean = statistics.fmean(gaps)
    return Difference(mean / scale, (mean - half) / scale, (mean + half) / scale)


def best_placed(found: Mapping[str, Rows]) -> str:
    """Return which LoRA stores most."""
    placed = [name for name in found if name == "lora" or name.startswith("lora_")]
    placed = [name for name in placed if name != "lora_xs"]
    return max(placed, key=lambda name: mean(found[name]))


def mean(rows: Rows) -> float:
    """Return the bits a parameter in the mean over seeds."""
    return statistics.fmean(map(density, rows))


def gate(results: Results, cell: Cell) -> tuple[bool, str]:
    """Tell whether capacity decides in a cell: LoRA r=8 has nearly all pairs right, r=1 at most half."""
    found = finished(results, Cell(cell.base, cell.task, BASES[cell.base].gated), ("gate", "lora"))
    if len(found) < 2:
        return False, "the gate has not been run"
    large, small = (statistics.fmean(r["right"] for r in found[name]) for name in ("gate", "lora"))
    is_open = large >= 0.95 and small <= 0.5
    state = "open" if is_open else "shut"
    return is_open, f"the gate is {state}: LoRA r=8 has {large:.1%} right, LoRA r=1 {small:.1%}"


def table(results: Results, cell: Cell, *, other: str = "") -> Iterator[str]:
    """Yield the lines of a cell's table: the gate first, and no figures where it is shut.

    Args:
        results: all runs.
        cell: of the table.
        other: what all are compared with, in place of the best LoRA.
    """
    is_open, words = gate(results, cell)
    longer = f", {cell.longer} times the steps" if cell.longer > 1 else ""
    yield f"### {cell.base}, keys of {cell.task}, {cell.budget:,} parameters, {cell.pairs:,} pairs{longer}"
    yield ""
    yield f"{words[0].upper()}{words[1:]}."
    yield ""
    known = methods(cell.base)
    found = finished(results, cell, [name for name in known if name != "gate"])
    if not is_open or not any(name.startswith("lora") for name in found):
        return
    best = other or best_placed(found)
    comparisons = max(1, len(found) - 1)
    heads = "parameters | bytes | rate | right | bits a parameter"
    yield f"| | {heads} | to {known[best].label} | to the same modules unshared |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for name, rows in sorted(found.items(), key=lambda one: -mean(one[1])):
        row = rows[0]
        spread = statistics.stdev(map(density, rows))
        gap = "" if name == best else str(difference(rows, found[best], comparisons))
        plain = UNSHARED.get(name, "lora" if known[name].family == "shipped" else "")
        against = str(difference(rows, found[plain], comparisons)) if plain in found else ""
        right = statistics.fmean(r["right"] for r in rows)
        yield (
            f"| {known[name].label} | {row['parameters']:,} | {row['bytes']:,} | {row['rate']:g} | "
            f"{right:.1%} | {mean(rows):.3f} ± {spread:.3f} | {gap} | {against} |"
        )
    yield ""


SHARING = ("own", "shipped")
"""Families in which modules share."""


def law_lines(results: Results) -> Iterator[str]:
    """Yield the exponents of each base and task, of LoRA and of what shares."""
    yield "### The law: bits = C P^a n^-b"
    yield ""
    yield "| base | keys | topologies | a | b | held out: median error | predictions |"
    yield "|---|---|---|---:|---:|---:|---:|"
    for base in BASES:
        known = methods(base)
        for task in ("one", "two"):
            found = {n: p for n, p in points(results, base, task).items() if len(p) > 1}
            groups = {
                "LoRA": [name for name in found if known[name].family == "LoRA"],
                "shared": [name for name in found if known[name].family in SHARING],
                "all": list(found),
            }
            for group, names in groups.items():
                if len(names) > 2:
                    one = law({name: found[name] for name in names})
                    # Without a second load the pairs grow as the budget does, and a alone is found.
                    b = f"{one.b:.2f}" if one.loads else ""
                    yield (
                        f"| {base} | {task} | {group}, {len(names)} | {one.a:.2f} | {b} | "
                        f"{one.error:.1%} | {one.count} |"
                    )
    yield ""
    yield from _border_lines(results)


def _border_lines(results: Results) -> Iterator[str]:
    yield "What a pool stores more than LoRA on the same modules, by the rank that LoRA has there:"
    yield ""
    yield "| base | keys | at rank 1 | with each doubling | nothing at rank | held out, median | cells |"
    yield "|---|---|---:|---:|---:|---:|---:|"
    for base in BASES:
        every = {task: gains(results, base, task) for task in ("one", "two")}
        for task, found in {**every, "either": every["one"] + every["two"]}.items():
            if len(found) > 3:
                fell = border(found)
                yield (
                    f"| {base} | {task} | {fell.at_one:+.1%} | {-fell.doubling:+.1%} | {fell.rank:.1f} | "
                    f"{100 * fell.error:.1f} points | {len(found)} |"
                )
    yield ""
