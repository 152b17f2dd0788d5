"""Summarise analyses in sentences: which key stands out from chance, and whether the runs agree."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from bishare_dsl.analyse.analysis import Analysis

STANDS_OUT = 0.02
"""A key stands out if it keeps at least this fraction more than chance."""
_FRACTION_OF_BEST = 0.8
"""Keys with at least this fraction of the best excess are also mentioned."""


def finding(analyses: Sequence[Analysis]) -> str:
    """Name the common factor that keeps most above chance, on average, and whether the runs can tell."""
    gains: dict[tuple[str, str], list[float]] = {}
    for analysis in analyses:
        for row in analysis.joint:
            gains.setdefault((row.joint.key, row.joint.role), []).append(row.gain)
    first, *others = sorted(gains, key=lambda common: fmean(gains[common]), reverse=True)
    most, runs = fmean(gains[first]), "These runs" if len(analyses) > 1 else "This run"
    if most < STANDS_OUT:
        sentences = [
            f"No key stands out: the most above chance is {_points(most)}, of {_named(first)}."
        ]
        sentences.append(f"{runs} cannot tell who should share.")
    else:
        name = _named(first)
        sentences = [
            f"{name[0].upper()}{name[1:]} stands out: it keeps {_points(most)} more than chance."
        ]
        groups = {
            (row.joint.key, row.joint.role): row.joint.groups
            for analysis in analyses
            for row in analysis.joint
        }
        # Skip keys with the same groups as a listed key.
        near: list[tuple[str, str]] = []
        for common in others:
            same = [c for c in (first, *near) if c[1] == common[1] and groups[c] == groups[common]]
            if fmean(gains[common]) > _FRACTION_OF_BEST * most and not (groups[common] and same):
                near.append(common)
        listed = ", ".join(f"{_named(common)} ({_points(fmean(gains[common]))})" for common in near)
        sentences += [f"Nearly as much: {listed}."] * bool(near) + [
            f"{runs} {_agreement(first, analyses)}"
        ]
    if not all(analysis.adapter.starts_known for analysis in analyses):
        sentences.append(
            "The initial values of A are unknown, so they stay in the updates and hide what A shares."
        )
    return " ".join(sentences)


def _agreement(first: tuple[str, str], analyses: Sequence[Analysis]) -> str:
    """Return in how many of the runs a key stands out, as a sentence."""
    if len(analyses) == 1:
        return "cannot tell the task from the seed: train with another `--seed`, and give both."
    count = 0
    for analysis in analyses:
        gains = {(row.joint.key, row.joint.role): row.gain for row in analysis.joint}
        count += gains.get(first, 0) > max(STANDS_OUT, _FRACTION_OF_BEST * max(gains.values()))
    sentence = f"it stands out in {count} of {len(analyses)}."
    return f"can tell: {sentence}" if count == len(analyses) else f"cannot tell: {sentence}"


def _named(common: tuple[str, str]) -> str:
    key, role = common
    factor = f"one {role}" if role != "A and B" else "one pair"
    return f"{factor} for the model" if key == "model" else f"{factor} per `{key}`"


def _points(part: float) -> str:
    return f"{100 * part:.1f} points"
