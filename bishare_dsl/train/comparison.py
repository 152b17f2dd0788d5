"""Compare specs by their finished runs: half of the held-out rows chooses a learning rate, half judges."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from bishare_dsl.diagnostics import BishareError, nearest
from bishare_dsl.diagnostics.codes.usage import NOT_COMPARABLE
from bishare_dsl.train.finished import LOSS, FinishedRun

_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""The quantile at 0.975 of Student's t, by degrees of freedom from 1."""

_NORMAL = 1.959964


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, with half of its 95% interval; None for a single seed."""

    mean: float
    half: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Estimate a mean by Student's t: ``t(n - 1) s / sqrt(n)``."""
        if len(values) < 2:
            return cls(values[0], None)
        return cls(
            fmean(values), _student(len(values) - 1) * stdev(values) / math.sqrt(len(values))
        )


def _student(freedom: int) -> float:
    """Return the quantile at 0.975; beyond the table by the expansion of Cornish and Fisher."""
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    z = _NORMAL
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


@dataclass(frozen=True)
class Row:
    """What is reported of a spec.

    Attributes:
        spec: its name with the given params.
        parameters: trained ones.
        rate: the chosen learning rate.
        is_edge: whether it is the least or the largest of several that have all seeds.
        seeds: the seeds that have run at it.
        score: the measure of the judging rows.
        difference: of the score to that of the first spec, over equal seeds; None for the first, or without
            an equal seed.
    """

    spec: str
    parameters: int
    rate: float
    is_edge: bool
    seeds: tuple[int, ...]
    score: Estimate
    difference: Estimate | None


@dataclass(frozen=True)
class Comparison:
    """Specs that are compared.

    Attributes:
        measure: in which scores are.
        rows: the first is the one that others are compared with.
        runs: those that are compared.
        notes: what is left out, by name, and how to read the numbers.
    """

    measure: str
    rows: tuple[Row, ...]
    runs: tuple[FinishedRun, ...]
    notes: tuple[str, ...]


def compare(runs: Sequence[FinishedRun], first: str | None = None) -> Comparison:
    """Compare the specs of finished runs.

    Each spec gets the learning rate whose choosing rows are best on average over seeds. A rate at which a
    seed is missing or has diverged cannot be chosen: the lucky seeds would judge it. A seed counts if it has
    run at half of the spec's learning rates or more, so that an interrupted grid can be read.

    Args:
        runs: of any specs, learning rates and seeds.
        first: the spec that others are compared with; by default the best on the choosing rows.

    Raises:
        BishareError: no run has held-out rows, or there is no such spec (BS911).
    """
    if all(run.judging is None for run in runs):
        reason = "no run has two held-out rows"
        raise BishareError(
            NOT_COMPARABLE(reason=reason, help="train with `--eval_data` or `--eval_split`")
        )
    kept, notes = _alike(runs)
    chosen = dict[str, list[FinishedRun]]()
    for spec, rates in by_rate(kept).items():
        seeds = _seeds_that_count(rates)
        whole = dict[float, list[FinishedRun]]()
        for rate, at_rate in rates.items():
            scored = [run for run in _by_seed(at_rate) if run.seed in seeds]
            if len(scored) == len(seeds):
                whole[rate] = scored
            else:
                notes.append(f"{spec}: a seed is missing at {rate:g}, so that it cannot be chosen")
        for seed in sorted({run.seed for at_rate in rates.values() for run in at_rate} - seeds):
            notes.append(f"{spec}: seed {seed} does not count: it has run at few learning rates")
        if whole:
            chosen[spec] = max(whole.values(), key=_choosing)
        else:
            notes.append(f"{spec} is left out: at each learning rate a seed is missing")
    if not chosen:
        reason = "each spec lacks a seed at each learning rate"
        raise BishareError(NOT_COMPARABLE(reason=reason, help="give the command of the grid again"))
    measure = next(run.measure for run in kept if run.judging is not None)
    ordered = sorted(chosen, key=lambda spec: -_choosing(chosen[spec]))
    if first is not None:
        if first not in chosen:
            reason = f"no spec `{first}` is compared"
            raise BishareError(NOT_COMPARABLE(reason=reason, help=nearest(first, ordered)))
        ordered.remove(first)
        ordered.insert(0, first)
    rows = tuple(_row(spec, chosen[spec], chosen[ordered[0]], kept) for spec in ordered)
    if any(row.is_edge for row in rows):
        notes.append(
            "* is the least or the largest learning rate that was tried: try others beyond it"
        )
    return Comparison(measure, rows, tuple(kept), (*notes, *_statements(rows, measure)))


def by_rate(runs: Sequence[FinishedRun]) -> dict[str, dict[float, list[FinishedRun]]]:
    """Return runs by spec and learning rate."""
    specs = dict[str, dict[float, list[FinishedRun]]]()
    for run in runs:
        specs.setdefault(run.spec, {}).setdefault(run.rate, []).append(run)
    return specs


def _alike(runs: Sequence[FinishedRun]) -> tuple[list[FinishedRun], list[str]]:
    """Return the runs with the most frequent conditions, and in words why others are left out."""
    conditions = Counter(
        tuple(sorted(run.conditions.items())) for run in runs if run.judging is not None
    )
    common = dict(conditions.most_common(1)[0][0])
    kept: list[FinishedRun] = []
    notes: list[str] = []
    for run in runs:
        others = [name for name, value in run.conditions.items() if value != common[name]]
        if run.diverged is not None:
            others = [name for name in others if name != "steps"]
        if others:
            notes.append(f"{run.folder.name} is not compared: its {' and '.join(others)} differ")
        elif run.diverged is not None:
            kept.append(run)
            notes.append(f"{run.folder.name} diverged: {run.diverged}")
        elif run.judging is None:
            notes.append(f"{run.folder.name} is not compared: it has no held-out rows")
        else:
            kept.append(run)
    return kept, notes


def _seeds_that_count(rates: Mapping[float, Sequence[FinishedRun]]) -> set[int]:
    """Return the seeds that have run, or diverged, at half of the learning rates or more."""
    tries: Counter[int] = Counter()
    for at_rate in rates.values():
        tries.update({run.seed for run in at_rate})
    most = max(tries.values())
    return {seed for seed, count in tries.items() if 2 * count >= len(rates) or count == most}


def _by_seed(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Return one run of each seed that has a score."""
    seeds = {run.seed: run for run in runs if run.judging is not None}
    return [seeds[seed] for seed in sorted(seeds)]


def _choosing(runs: Sequence[FinishedRun]) -> float:
    """Return the mean by which a learning rate is chosen; more is better."""
    mean = fmean(run.choosing for run in runs if run.choosing is not None)
    return -mean if runs[0].measure == LOSS else mean


def _row(
    spec: str,
    chosen: Sequence[FinishedRun],
    first: Sequence[FinishedRun],
    runs: Sequence[FinishedRun],
) -> Row:
    scores = _scores(chosen)
    difference = None
    if chosen is not first:
        of_first = _scores(first)
        gaps = [score - of_first[seed] for seed, score in scores.items() if seed in of_first]
        difference = Estimate.of(gaps) if gaps else None
    rates = sorted(by_rate(runs)[spec])
    rate = chosen[0].rate
    return Row(
        spec=spec,
        parameters=chosen[0].parameters,
        rate=rate,
        is_edge=len(rates) > 1 and rate in (rates[0], rates[-1]),
        seeds=tuple(scores),
        score=Estimate.of([*scores.values()]),
        difference=difference,
    )


def _scores(runs: Sequence[FinishedRun]) -> dict[int, float]:
    return {run.seed: run.judging for run in runs if run.judging is not None}


def _statements(rows: Sequence[Row], measure: str) -> list[str]:
    """Return what the numbers say and do not say."""
    better = "less is better" if measure == LOSS else "more is better"
    scores = (
        f"{measure} ({better}): the mean ± a 95% interval over seeds, on the half of the held-out rows that "
        "chose no learning rate. It says nothing on other rows or data"
    )
    lines = [scores, _differences(rows, measure)]
    sizes = [row.parameters for row in rows]
    if max(sizes) > 1.05 * min(sizes):
        span = f"from {min(sizes):,} to {max(sizes):,} parameters"
        lines.append(f"the specs train {span}: `bishare plan --match` meets a budget")
    return lines


def _differences(rows: Sequence[Row], measure: str) -> str:
    """Return which specs differ from the first by more than the interval of their difference."""
    count = 0
    apart = list[str]()
    for row in rows[1:]:
        if row.difference is None or row.difference.half is None:
            continue
        count += 1
        if abs(row.difference.mean) > row.difference.half:
            is_less = row.difference.mean < 0
            is_ahead = is_less if measure == LOSS else not is_less
            apart.append(f"{row.spec} is {'ahead' if is_ahead else 'behind'}")
    if count == 0:
        return "differences have no interval: each needs two equal seeds and another spec"
    comparisons = "1 comparison" if count == 1 else f"{count} comparisons"
    seen = ", ".join(apart) if apart else "none can be told apart"
    return f"beside {rows[0].spec}, over equal seeds: {seen} ({comparisons}, not corrected for their number)"
