"""Tables of what was found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from few.methods import METHODS

OTHERS = {
    "head": "linear head on the base",
    "joint_head": "joint LoRA + linear head",
    "joint": "joint LoRA as it is",
    "base": "untrained",
    "nearest": "nearest example",
    "in_context": "examples in context",
}
DRAWS = 10_000
Cell = tuple[str, str, int, int]
"""Family, method, examples, library tasks."""


def accuracies(row: Mapping[str, Any]) -> np.ndarray:
    """Return a cell's accuracy on each task in percent, averaged over seeds."""
    return 100 * np.array(row["right"], float).mean(0) / row["asked"]


def interval(gaps: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return a bootstrap interval of the mean of paired differences."""
    draw = np.random.default_rng(0).integers(0, len(gaps), (DRAWS, len(gaps)))
    low, high = np.quantile(gaps[draw].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def label(method: str, row: Mapping[str, Any]) -> str:
    """Return a method's name for a table."""
    name = OTHERS.get(method) or METHODS[row.get("placed", method)].label
    return f"**{name}**" if method == "core" else name


def lines(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the tables as Markdown."""
    judged: dict[Cell, Mapping[str, Any]] = {
        (row["family"], row["method"], row["n"], row["T"]): row
        for row in found
        if row["part"] == "judged"
    }
    yield from _primary(judged)
    for family in dict.fromkeys(cell[0] for cell in judged):
        yield from _family(judged, family)
    yield from _counts(judged)
    yield from _sizes(judged)


def _primary(judged: Mapping[Cell, Mapping[str, Any]]) -> Iterator[str]:
    yield "### `library_core` (640 numbers) minus the better fresh LoRA, 16 library tasks"
    yield ""
    yield "| family | examples | library | fresh LoRA | difference | 95% | 98.75% | tasks ahead |"
    yield "|---|---:|---:|---:|---:|---|---|---:|"
    for (family, method, n, tasks), row in judged.items():
        own = family.partition(" by ")[0]
        rivals = [judged.get((own, name, n, 16)) for name in ("lora", "lora1")]
        if method != "core" or tasks != 16 or None in rivals:
            continue
        best = max(rivals, key=lambda r: accuracies(r).mean())  # type: ignore[arg-type]
        mine, theirs = accuracies(row), accuracies(best)  # type: ignore[arg-type]
        gaps = mine - theirs
        wide = _shown(*interval(gaps, 0.9875))
        yield (
            f"| {family} | {n} | {mine.mean():.1f} | {theirs.mean():.1f} | {_gap(gaps)} | {wide} | "
            f"{(gaps > 0).sum()} of {len(gaps)} |"
        )
    yield ""


def _family(judged: Mapping[Cell, Mapping[str, Any]], family: str) -> Iterator[str]:
    own = family.partition(" by ")[0]
    for n in sorted({cell[2] for cell in judged if cell[0] == family and cell[3] == 16}):
        rows = {m: row for (f, m, k, t), row in judged.items() if (f, k, t) == (family, n, 16)}
        core = judged.get((family, "core", n, 16))
        if core is None or (family != own and (own, "lora", n, 16) not in judged):
            continue
        if family != own:
            rows |= {f"{m}": judged[own, m, n, 16] for m in ("lora",)}
        yield f"### {family}, {n} examples"
        yield ""
        yield "| | own numbers | learning rate | correct | `library_core` minus it |"
        yield "|---|---:|---:|---:|---|"
        for method, row in sorted(rows.items(), key=lambda one: -accuracies(one[1]).mean()):
            gaps = accuracies(core) - accuracies(row)
            gap = "" if method == "core" else _gap(gaps, " ")
            own_numbers = f"{row['own']:,}" if "own" in row else "0"
            yield (
                f"| {label(method, row)} | {own_numbers} | {row.get('rate', '')} | "
                f"{accuracies(row).mean():.1f} | {gap} |"
            )
        yield ""


def _counts(judged: Mapping[Cell, Mapping[str, Any]]) -> Iterator[str]:
    counts = sorted({cell[2] for cell in judged})
    yield "### By the number of examples, 16 library tasks"
    yield ""
    yield f"| family | method | {' | '.join(map(str, counts))} |"
    yield f"|---|---|{'---:|' * len(counts)}"
    for family in dict.fromkeys(cell[0] for cell in judged if " by " not in cell[0]):
        for method in ("core", "joint_tiny", "library_joint", "lora", "lora1"):
            rows = [judged.get((family, method, n, 16)) for n in counts]
            if any(rows):
                known = next(row for row in rows if row)
                cells = [f"{accuracies(row).mean():.1f}" if row else "" for row in rows]
                yield f"| {family} | {label(method, known)} | {' | '.join(cells)} |"
    yield ""


def _sizes(judged: Mapping[Cell, Mapping[str, Any]]) -> Iterator[str]:
    sizes = sorted({cell[3] for cell in judged})
    if len(sizes) < 2:
        return
    yield "### By the number of library tasks, 8 examples"
    yield ""
    yield f"| family | method | {' | '.join(map(str, sizes))} | last minus first |"
    yield f"|---|---|{'---:|' * len(sizes)}---|"
    families = [c[0] for c in judged if c[3] != 16]
    for family in dict.fromkeys(families):
        for method in dict.fromkeys(c[1] for c in judged if c[0] == family and c[3] != 16):
            rows = [judged.get((family, method, 8, size)) for size in sizes]
            known = [row for row in rows if row]
            cells = [f"{accuracies(row).mean():.1f}" if row else "" for row in rows]
            gap = _gap(accuracies(known[-1]) - accuracies(known[0]), " ") if known[1:] else ""
            yield f"| {family} | {label(method, known[0])} | {' | '.join(cells)} | {gap} |"
    yield ""


def _gap(gaps: np.ndarray, between: str = " | ") -> str:
    low, high = interval(gaps)
    mean = f"{gaps.mean():+.1f}"
    return f"{f'**{mean}**' if low > 0 or high < 0 else mean}{between}{_shown(low, high)}"


def _shown(low: float, high: float) -> str:
    return f"({low:+.1f} to {high:+.1f})"
