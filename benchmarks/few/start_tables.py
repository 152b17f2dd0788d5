"""Tables of notes/2026-11-30-starting.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

Row = Mapping[str, Any]
AGREE = ("thresholds", "desks", "patients", "replies")
APART = ("renames", "ratings", "styles")
PRIMARY = 1 + len(AGREE) + len(APART)
"""Comparisons for which intervals are corrected."""
MARGIN, DRAWS = 2.0, 10_000
"""Points that "not worse" may be behind, and draws of the bootstrap."""
LABELS = {
    "auto": "**auto**",
    "shipped": "auto as shipped: the record counts in full",
    "left_out": "members, sharpness by leaving out",
    "zero": "a core trained from zero",
    "mixture": "members, sharpness 1",
    "mixture_0.1": "members, sharpness 0.1",
    "mean": "mean of members",
    "nearest_member": "nearest member",
    "joint": "one LoRA for all, as it is",
    "joint_continued": "one LoRA for all, trained on",
    "lora": "fresh LoRA r=8",
    "lora1": "fresh LoRA r=1",
    "lora_all": "fresh LoRA r=8, all blocks",
    "lora1_all": "fresh LoRA r=1, all blocks",
    "lorahub": "LoraHub's search over members",
    "peft_mean": "PEFT's sum of LoRAs, equal weights",
    "peft_mixture": "PEFT's sum of LoRAs, weights by loss",
    "majority": "the library's commonest answer",
    "nearest": "nearest example",
    "by_numbers": "a rule of one line: the nearest numbers",
    "in_context": "examples in context",
    "base": "no adapter",
    "auto4": "auto, r=4",
    "shipped4": "auto as shipped, r=4",
    "left_out4": "members by leaving out, r=4",
    "zero4": "a core r=4 trained from zero",
    "library_joint": "library_joint",
    "grown": "a core from zero, A and B trained on with the new tasks",
}
COUNTED = ("auto", "shipped", "left_out", "zero", "joint", "joint_continued", "lora", "lora1")
OWN = {"joint": 0, "peft_mean": 110_592, "peft_mixture": 110_592, "lorahub": 640}


def accuracies(row: Mapping[str, Any]) -> np.ndarray:
    """Return a cell's accuracy on each task in percent, averaged over seeds."""
    return 100 * np.array(row["right"], float).mean(0) / row["asked"]


def interval(gaps: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return a bootstrap interval of the mean of paired differences."""
    draw = np.random.default_rng(0).integers(0, len(gaps), (DRAWS, len(gaps)))
    low, high = np.quantile(gaps[draw].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def lines(found: Sequence[Row]) -> Iterator[str]:
    """Yield the tables as Markdown."""
    judged = {(r["family"], r["method"], r["n"], r["T"]): r for r in found if r["part"] == "judged"}
    judged |= dict(_shipped(judged))
    families = [family for family in (*AGREE, *APART) if (family, "auto", 8, 16) in judged]
    yield from _primary(judged)
    yield from _secondary(judged)
    for family in families:
        yield from _family(judged, family)
    yield from _counts(judged, families)
    yield from _sizes(judged, families)
    yield from _left(found)
    yield from _ranks(judged)


def _ranks(judged: Mapping[Any, Row]) -> Iterator[str]:
    """Cores of rank 4 compared with rank 8, with the n-th new tasks of all families averaged."""
    known = [f for f in AGREE if all(_at(judged, f, m, 8) is not None for m in ("auto4", "auto"))]
    yield "### Cores of rank 4 minus rank 8, 8 examples, 16 library tasks"
    yield ""
    yield "| families | | r=4 | r=8 | difference | 95% |"
    yield "|---|---|---:|---:|---:|---|"
    for some in (*([family] for family in known), known) if known else ():
        for method in ("auto", "shipped", "left_out", "zero"):
            four, eight = (
                np.mean([_at(judged, f, f"{method}{rank}", 8) for f in some], 0)
                for rank in ("4", "")
            )
            gaps = four - eight
            yield (
                f"| {', '.join(some)} | {LABELS[method]} | {four.mean():.1f} | {eight.mean():.1f} | "
                f"{gaps.mean():+.1f} | {_shown(*interval(gaps))} |"
            )
    yield ""


def _shipped(judged: Mapping[Any, Row]) -> Iterator[tuple[Any, Row]]:
    """Yield what `auto` gives if the library's record counts in full, from the rows of its parts."""
    for (family, method, n, tasks), auto in judged.items():
        if not method.startswith("auto"):
            continue
        rank = method[4:]
        parts = [
            judged[family, f"{part}{rank}", n, tasks]["right"] for part in ("left_out", "zero")
        ]
        ours, theirs = map(np.array, auto["folds"])
        wins = 8 * np.array(auto["ahead"])[:, None] + ours - theirs > 0
        right = np.where(wins, *map(np.array, parts)).tolist()
        yield (family, f"shipped{rank}", n, tasks), {**auto, "right": right, "wins": wins}


def _at(judged: Mapping[Any, Row], family: str, method: str, n: int, tasks: int = 16) -> Any:
    row = judged.get((family, method, n, tasks))
    return None if row is None else accuracies(row)


def _fresh(judged: Mapping[Any, Row], family: str, n: int) -> Any:
    """Return the better fresh LoRA on the two blocks."""
    rows = [_at(judged, family, method, n) for method in ("lora", "lora1")]
    return None if any(row is None for row in rows) else max(rows, key=np.mean)


def _primary(judged: Mapping[Any, Row]) -> Iterator[str]:
    """The comparisons of the hypotheses."""
    level = 1 - 0.05 / PRIMARY
    yield "### `auto` minus its rival, 8 examples, 16 library tasks"
    yield ""
    yield f"| | rival | auto | rival | difference | 95% | {100 * level:.3f}% | |"
    yield "|---|---|---:|---:|---:|---|---|---|"
    known = [f for f in (*AGREE, *APART) if _at(judged, f, "auto", 8) is not None]
    both = [
        (_at(judged, f, "auto", 8), theirs)
        for f in known
        if (theirs := _at(judged, f, "joint_continued", 8)) is not None
    ]
    if both:
        mine, theirs = (np.mean([pair[i] for pair in both], 0) for i in (0, 1))
        yield _compared(
            f"mean of {len(both)} families", "joint_continued", mine, theirs, level, -MARGIN
        )
    for family in known:
        mine = _at(judged, family, "auto", 8)
        if family in AGREE and (theirs := _fresh(judged, family, 8)) is not None:
            yield _compared(family, "better fresh LoRA", mine, theirs, level, 0)
        if family in APART:
            yield _compared(family, "zero", mine, _at(judged, family, "zero", 8), level, -MARGIN)
    yield ""


def _secondary(judged: Mapping[Any, Row]) -> Iterator[str]:
    """Both rules minus what a reader would take instead, at other numbers of examples."""
    yield "### Both rules minus their rivals, other numbers of examples, 16 library tasks, 95%"
    yield ""
    yield "| family | examples | rival | rival | `auto` minus it | `auto` as shipped minus it |"
    yield "|---|---:|---|---:|---|---|"
    for family in (*AGREE, *APART):
        for n in (2, 4, 16, 64):
            ours = [_at(judged, family, rule, n) for rule in ("auto", "shipped")]
            if ours[0] is None:
                continue
            rivals = {"better fresh LoRA": _fresh(judged, family, n)}
            for method in ("joint_continued", "joint", "zero"):
                rivals[LABELS[method]] = _at(judged, family, method, n)
            for name, theirs in rivals.items():
                if theirs is None:
                    continue
                gaps = [mine - theirs for mine in ours]
                shown = (f"{gap.mean():+.1f} {_shown(*interval(gap))}" for gap in gaps)
                yield f"| {family} | {n} | {name} | {theirs.mean():.1f} | {' | '.join(shown)} |"
    yield ""


def _compared(family: str, rival: str, mine: Any, theirs: Any, level: float, least: float) -> str:
    gaps = mine - theirs
    wide = interval(gaps, level)
    word = (
        ("win" if least == 0 else "not worse")
        if wide[0] > least
        else "loss"
        if wide[1] < 0
        else "open"
    )
    return (
        f"| {family} | {LABELS.get(rival, rival)} | {mine.mean():.1f} | {theirs.mean():.1f} | "
        f"{gaps.mean():+.1f} | {_shown(*interval(gaps))} | {_shown(*wide)} | {word} |"
    )


def _family(judged: Mapping[Any, Row], family: str) -> Iterator[str]:
    rows = {
        m: row
        for (f, m, n, t), row in judged.items()
        if (f, n, t) == (family, 8, 16) and m in LABELS
    }
    auto = accuracies(rows["auto"])
    yield f"### {family}, 8 examples, 16 library tasks"
    yield ""
    yield "| | own numbers | correct | `auto` minus it |"
    yield "|---|---:|---:|---|"
    for method, row in sorted(rows.items(), key=lambda one: -accuracies(one[1]).mean()):
        right = accuracies(row)
        gap = (
            ""
            if method == "auto"
            else f"{(auto - right).mean():+.1f} {_shown(*interval(auto - right))}"
        )
        yield f"| {LABELS[method]} | {row.get('own', OWN.get(method, 0)):,} | {right.mean():.1f} | {gap} |"
    yield ""


def _counts(judged: Mapping[Any, Row], families: Sequence[str]) -> Iterator[str]:
    counts = [n for n in (2, 4, 8, 16, 64) if any(c[1:] == ("auto", n, 16) for c in judged)]
    yield "### By the number of examples, 16 library tasks"
    yield ""
    yield f"| family | | {' | '.join(map(str, counts))} |"
    yield f"|---|---|{'---:|' * len(counts)}"
    for family in families:
        for method in COUNTED:
            rows = [_at(judged, family, method, n) for n in counts]
            shown = ["" if row is None else f"{row.mean():.1f}" for row in rows]
            yield f"| {family} | {LABELS[method]} | {' | '.join(shown)} |"
    yield ""


def _sizes(judged: Mapping[Any, Row], families: Sequence[str]) -> Iterator[str]:
    sizes = [t for t in (4, 16, 64, 256) if any(c[1:] == ("auto", 8, t) for c in judged)]
    yield "### By the number of library tasks, 8 examples"
    yield ""
    yield f"| family | | {' | '.join(map(str, sizes))} |"
    yield f"|---|---|{'---:|' * len(sizes)}"
    for family in families:
        if sum((family, "auto", 8, t) in judged for t in sizes) < 2:
            continue
        for method in ("auto", "left_out", "zero", "joint", "joint_continued"):
            rows = [_at(judged, family, method, 8, t) for t in sizes]
            shown = ["" if row is None else f"{row.mean():.1f}" for row in rows]
            yield f"| {family} | {LABELS[method]} | {' | '.join(shown)} |"
    yield ""


def _left(found: Sequence[Row]) -> Iterator[str]:
    yield "### What leaving members out says"
    yield ""
    yield "| family | library tasks | rank | sharpness | members ahead of training | members chosen |"
    yield "|---|---:|---:|---|---|---:|"
    for row in found:
        if row["part"] != "left out":
            continue
        records = row["records"]
        key = {"family": row["family"], "method": f"auto{row['rank']}", "n": 8, "T": row["T"]}
        auto = next((r for r in found if key.items() <= r.items()), None)
        share = "" if auto is None else f"{100 * np.mean(auto['wins']):.0f}%"
        sharp = ", ".join(f"{r['sharpness']:g}" for r in records)
        ahead = ", ".join(f"{100 * r['ahead']:+.1f}" for r in records)
        yield f"| {row['family']} | {row['T']} | {row['rank'] or 8} | {sharp} | {ahead} | {share} |"
    yield ""


def _shown(low: float, high: float) -> str:
    return f"({low:+.1f} to {high:+.1f})"
