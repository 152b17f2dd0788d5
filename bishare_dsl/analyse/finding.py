"""What analyses come to, in sentences: which key stands out from chance, and whether the runs can tell."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from bishare_dsl.analyse.analysis import Analysis

STANDS_OUT = 0.02
"""What a key keeps above chance at least, to be told from chance."""
_NEAR = 0.8
"""The part of the most above chance that is nearly as much."""


def finding(analyses: Sequence[Analysis]) -> str:
    """Say which common factor keeps most above chance, in the mean over adapters, and whether that tells."""
    gains: dict[tuple[str, str], list[float]] = {}
    for analysis in analyses:
        for row in analysis.joint:
            gains.setdefault((row.joint.key, row.joint.role), []).append(row.gain)
    first, *others = sorted(gains, key=lambda common: fmean(gains[common]), reverse=True)
    most, runs = fmean(gains[first]), "These runs" if len(analyses) > 1 else "This run"
    if most < STANDS_OUT:
        said = [f"No key stands out: the most above chance is {_points(most)}, of {_named(first)}."]
        said.append(f"{runs} cannot tell who should share.")
    else:
        name = _named(first)
        said = [
            f"{name[0].upper()}{name[1:]} stands out: it keeps {_points(most)} more than chance."
        ]
        groups = {
            (row.joint.key, row.joint.role): row.joint.groups
            for analysis in analyses
            for row in analysis.joint
        }
        # A key with the groups of one that is listed is that one again.
        near: list[tuple[str, str]] = []
        for common in others:
            same = [c for c in (first, *near) if c[1] == common[1] and groups[c] == groups[common]]
            if fmean(gains[common]) > _NEAR * most and not (groups[common] and same):
                near.append(common)
        listed = ", ".join(f"{_named(common)} ({_points(fmean(gains[common]))})" for common in near)
        said += [f"Nearly as much: {listed}."] * bool(near) + [f"{runs} {_tells(first, analyses)}"]
    if not all(analysis.adapter.starts_known for analysis in analyses):
        said.append(
            "The initial values of A are unknown, so they stay in the updates and hide what A shares."
        )
    return " ".join(said)


def _tells(first: tuple[str, str], analyses: Sequence[Analysis]) -> str:
    """Say in how many of the runs a key stands out."""
    if len(analyses) == 1:
        return "cannot tell the task from the seed: train with another `--seed`, and give both."
    found = 0
    for analysis in analyses:
        own = {(row.joint.key, row.joint.role): row.gain for row in analysis.joint}
        found += own.get(first, 0) > max(STANDS_OUT, _NEAR * max(own.values()))
    said = f"it stands out in {found} of {len(analyses)}."
    return f"can tell: {said}" if found == len(analyses) else f"cannot tell: {said}"


def _named(common: tuple[str, str]) -> str:
    key, role = common
    factor = f"one {role}" if role != "A and B" else "one pair"
    return f"{factor} for the model" if key == "model" else f"{factor} per `{key}`"


def _points(part: float) -> str:
    return f"{100 * part:.1f} points"
