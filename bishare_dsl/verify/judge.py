"""Judge whether a server applies an adapter, from the answers of its base and of the adapter.

Differences, adapter minus base, are compared with those that a reference or a probe card expects. The
server's rounding limits detection. For example, if its base differs from the float32 base by 0.07, as in
bfloat16, distances of effects below four times that decide nothing. Their direction may.

Nothing here imports torch: a card is judged without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np

from bishare_dsl.diagnostics import Problem, as_json
from bishare_dsl.diagnostics.codes import verify as codes
from bishare_dsl.verify.server import Answer, Asked, ServerError, distance, rms


class Word(StrEnum):
    """What a verdict says."""

    APPLIED = "APPLIED"
    NOT_APPLIED = "NOT APPLIED"
    AS_IF_SCALED = "AS IF SCALED"
    ANOTHER_ADAPTER = "ANOTHER ADAPTER"
    NOT_THERE = "NOT THERE"
    UNKNOWN = "UNKNOWN"
    FITS = "fits"
    DOES_NOT_FIT = "does not fit"


BASE, ADAPTER, UNSCALED = "the base", "base + adapter", "the adapter without its scale alpha / r"
"""The expected answers that a server's are compared with."""

MOST_NOISE = 0.3
"""The limit for differences between the base's answers to the same texts; rounding causes less."""

OTHER_BASE = 0.2
"""The distance between the server's base and the expected one above which their weights differ."""

LEAST_FLOOR = 1e-3
"""A bound for the difference between two programs in float32, and for the digits of a card."""

LEAST_EFFECT = 4
"""The smallest effect whose distances are judged, in units of the server's rounding."""

LEAST_TOKENS = 24
"""The fewest tokens of the base, and the fewest of both for a direction."""

LEAST_KNOWN = 0.5
"""The smallest known fraction of the tokens in the adapter's answers."""

LEAST_TEXTS = 3
"""The fewest greedy texts that the base and the adapter continue in different ways."""

MOST_NAMES = 5
"""The most adapters that a problem names."""

NOT_TESTED = "a part of it whose effect is below the server's rounding"


@dataclass
class Verdict:
    """A verdict on an adapter on a server, or on its files alone if ``server`` is empty.

    Attributes:
        adapter: its name.
        server: the URL.
        files: what the files contain.
        problems: problems of the files.
        word: the verdict.
        why: the evidence in one sentence.
        not_tested: possible faults that were not tested.
        numbers: the distances, in natural logarithms, and how many tokens were compared.
        error: why there is no answer.
    """

    adapter: str
    server: str = ""
    files: str = ""
    problems: Sequence[Problem] = ()
    word: Word = Word.UNKNOWN
    why: str = ""
    not_tested: list[str] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)
    error: Problem | None = None

    def set(self, word: Word, why: str) -> None:
        """Set the word and the evidence."""
        self.word = word
        self.why = why

    def evidence(self) -> str:
        """Return the evidence, with the first problem of the files."""
        parts = [self.why] if self.why else []
        if self.problems:
            parts.append(f"files: {self.problems[0].code} {self.problems[0].message}")
        if len(self.problems) > 1:
            parts.append(f"and {len(self.problems) - 1} more")
        return "; ".join(parts)

    def data(self) -> dict[str, Any]:
        """Return the verdict as JSON."""
        values = {name: value for name, value in vars(self).items() if name != "error"}
        values["problems"] = [as_json(problem) for problem in self.problems]
        return values


@dataclass(frozen=True)
class Expected:
    """What a server should answer.

    Attributes:
        columns: the column of each token, by its id and by its text.
        answers: the log-probabilities of `BASE` and `ADAPTER`, and perhaps of `UNSCALED`,
            ``(texts, columns)``; NaN where a card does not list them.
        greedy: the greedy continuations of each text, of the base and of the adapter.
        depths: how many of the likeliest tokens are known for each text; empty if all are.
    """

    columns: Mapping[int | str, int]
    answers: Mapping[str, np.ndarray]
    greedy: Sequence[tuple[str, str]] = ()
    depths: Sequence[int] = ()


@dataclass(frozen=True)
class Case:
    """A possible verdict; the first whose condition holds is given."""

    holds: bool
    word: Word
    why: str


def judge(verdict: Verdict, asked: Asked | ServerError, expected: Expected | None) -> Verdict:
    """Write the verdict on a server's answers, and return it.

    Args:
        verdict: on the adapter on the server, without a word.
        asked: the answers.
        expected: the correct ones; without, only an ignored adapter is detected.
    """
    if isinstance(asked, ServerError):
        verdict.error = asked.problems[0]
        word = Word.NOT_THERE if asked.status in (400, 404) else Word.UNKNOWN
        verdict.set(word, verdict.error.message)
        return verdict
    change = distance(asked.adapter, asked.base)
    verdict.numbers |= {"noise": asked.noise, "moved": change}
    if asked.noise > MOST_NOISE:
        noise = f"the base answers the same texts differently (by {asked.noise:.2f})"
        verdict.set(Word.UNKNOWN, f"{noise}: try again when no other requests run")
    elif isinstance(asked.base[0], str):
        _judge_texts(verdict, asked, expected.greedy if expected else ())
    elif asked.noise == 0 and asked.adapter == asked.base:
        why = f"'{verdict.adapter}' answers all texts as the base, bit for bit"
        verdict.set(Word.NOT_APPLIED, why)
    elif expected is None:
        missing = "more takes --model with weights, and files that fit"
        why = f"'{verdict.adapter}' differs from the base by {change:.3g}; {missing}"
        verdict.set(Word.UNKNOWN, why)
    else:
        _judge_tokens(verdict, asked, expected)
    return verdict


def _give(verdict: Verdict, cases: Sequence[Case]) -> None:
    for case in cases:
        if case.holds:
            verdict.set(case.word, case.why)
            return


@dataclass(frozen=True)
class _Measures:
    """The measured distances between a server's answers and the expected ones.

    Attributes:
        floor: the server's rounding: the distance of its base from the expected base.
        effect: the distance between the expected base and the expected adapter.
        errors: the distances of the server's adapter from the expected answers, by their names.
        slope: of the adapter's differences over the expected ones; 0 with too few tokens.
        correlation: of the same.
    """

    floor: float
    effect: float
    errors: Mapping[str, float]
    slope: float
    correlation: float

    @property
    def nearest(self) -> str:
        """The expected answers with the smallest distance."""
        return min(self.errors, key=lambda name: self.errors[name])

    @property
    def near_adapter(self) -> bool:
        """Whether base + adapter is as near as the nearest."""
        return self.errors[ADAPTER] <= self.errors[self.nearest] + 0.2 * self.floor

    @property
    def is_small(self) -> bool:
        """Whether the effect is too small for distances."""
        return self.effect < LEAST_EFFECT * self.floor

    @property
    def is_far(self) -> bool:
        """Whether the answers are none of the expected ones. A server rounds the update, too."""
        return self.errors[self.nearest] > 1.5 * self.floor * math.hypot(1, self.effect)

    @property
    def has_scale(self) -> bool:
        """Whether the differences have the expected direction and size."""
        return self.correlation >= 0.9 and 0.75 <= self.slope <= 1.33

    @property
    def has_other_scale(self) -> bool:
        """Whether the differences have the expected direction, and another size."""
        return self.correlation >= 0.97 and not 0.75 <= self.slope <= 1.33


def _judge_tokens(verdict: Verdict, asked: Asked, expected: Expected) -> None:
    """Judge a server by the log-probabilities of its likeliest tokens."""
    base, _ = _located(asked.base, expected)
    own, count = _located(asked.adapter, expected)
    verdict.numbers |= {"judged": len(own), "tokens": count}
    places = {*base, *own}
    answers = {
        name: {place: float(values[place]) for place in places}
        for name, values in expected.answers.items()
    }
    known = f"{len(own)} of its {count} tokens"
    cases = [
        Case(
            len(base) < LEAST_TOKENS,
            Word.UNKNOWN,
            "the server's base has other tokens, or is another model",
        ),
        Case(
            len(own) < LEAST_KNOWN * count or not own,
            Word.UNKNOWN,
            "the server's adapter has other tokens, or is another model: "
            f"only {known} can be compared",
        ),
        Case(
            not all(map(math.isfinite, answers[BASE].values())),
            Word.UNKNOWN,
            "the expected answers of the base are not finite: the weights given to --model overflow",
        ),
        Case(
            not all(map(math.isfinite, answers[ADAPTER].values())),
            Word.UNKNOWN,
            "the expected answers of base + adapter are not finite: the adapter's values overflow",
        ),
    ]
    if any(case.holds for case in cases):
        _give(verdict, cases)
        return
    measures = _measure(base, own, answers, asked.noise)
    verdict.numbers |= {
        "floor": measures.floor,
        "effect": measures.effect,
        "error": measures.errors[ADAPTER],
        "slope": measures.slope,
        "correlation": measures.correlation,
    }
    _give(verdict, _cases(verdict.adapter, measures, known))
    if verdict.word == Word.APPLIED:
        verdict.not_tested.append(NOT_TESTED)
    if measures.floor > OTHER_BASE:
        shift = f"the base is {measures.floor:.2g} from the expected one"
        verdict.why += f"; {shift}: another base, or quantised"


def _located(
    answers: Sequence[Answer], expected: Expected
) -> tuple[dict[tuple[int, int], float], int]:
    """Return the log-probabilities of known tokens by text and column, and the number of all tokens.

    Of a card, which lists the likeliest tokens alone, only as many count for each text.
    """
    listed = ~np.isnan(expected.answers[BASE]) | (not expected.depths)
    places: dict[tuple[int, int], float] = {}
    count = 0
    for text, answer in enumerate(answers):
        assert isinstance(answer, dict)
        depth = expected.depths[text] if expected.depths else len(answer)
        likeliest = sorted(answer, key=lambda token: -answer[token])
        for rank, token in enumerate(likeliest):
            column = expected.columns.get(token)
            is_listed = column is not None and bool(listed[text, column])
            if column is not None and is_listed:
                places[text, column] = answer[token]
            if is_listed or rank < depth:
                count += 1
    return places, count


def _measure(
    base: Mapping[tuple[int, int], float],
    own: Mapping[tuple[int, int], float],
    answers: Mapping[str, Mapping[tuple[int, int], float]],
    noise: float,
) -> _Measures:
    """Compare the located answers of a server with the expected ones."""
    of_base = answers[BASE]
    floor = max(LEAST_FLOOR, noise, rms([base[place] - of_base[place] for place in base]))
    # Differences from the expected base: those expected, and those of the server.
    moves = {
        name: np.array([values[place] - of_base[place] for place in own])
        for name, values in answers.items()
        if all(math.isfinite(values[place]) for place in own)
    }
    change = np.array([value - of_base[place] for place, value in own.items()])
    shift = np.array([base.get(place, math.nan) - of_base[place] for place in own])
    # Subtracting the server's own base cancels the shift of a quantised one.
    candidates = [change, change - np.nan_to_num(shift)]
    errors = [
        {name: rms(candidate - move) for name, move in moves.items()} for candidate in candidates
    ]
    slope = 0.0
    correlation = 0.0
    in_both = ~np.isnan(shift)
    x = moves[ADAPTER][in_both]
    y = (change - shift)[in_both]
    if len(x) >= LEAST_TOKENS and x.any() and y.any():
        slope = float(x @ y / (x @ x))
        correlation = float(x @ y / math.sqrt((x @ x) * (y @ y)))
    return _Measures(
        floor=floor,
        effect=rms(moves[ADAPTER]),
        errors=min(errors, key=lambda distances: min(distances.values())),
        slope=slope,
        correlation=correlation,
    )


def _cases(adapter: str, measures: _Measures, known: str) -> list[Case]:
    """Return the verdicts on a server's distances, in their order."""
    answers = f"'{adapter}' answers"
    errors = measures.errors
    distances = f"{errors[ADAPTER]:.2g} from base + adapter, {errors[BASE]:.2g} from the base"
    numbers = f"({distances}, rounding {measures.floor:.2g}; {known})"
    too_small = f"the effect is {measures.effect:.2g}, and this server's rounding is"
    decided = measures.has_scale and measures.near_adapter
    return [
        Case(
            measures.is_small and not decided,
            Word.UNKNOWN,
            f"{too_small} {measures.floor:.2g}: ask one that runs in float32",
        ),
        Case(
            measures.is_small,
            Word.APPLIED,
            f"{answers} as base + adapter {numbers}",
        ),
        Case(
            measures.is_far and measures.has_other_scale,
            Word.AS_IF_SCALED,
            f"{answers} as the adapter at {measures.slope:.2g} of its scale {numbers}",
        ),
        Case(
            measures.is_far,
            Word.ANOTHER_ADAPTER,
            f"{answers} neither as the base nor as base + adapter {numbers}: "
            "a part of it, an older version, another adapter, or another base",
        ),
        Case(
            measures.near_adapter,
            Word.APPLIED,
            f"{answers} as base + adapter {numbers}",
        ),
        Case(
            measures.nearest == BASE,
            Word.NOT_APPLIED,
            f"{answers} as the base, or something much weaker {numbers}",
        ),
        Case(
            True,
            Word.AS_IF_SCALED,
            f"{answers} as {UNSCALED} {numbers}",
        ),
    ]


def _judge_texts(verdict: Verdict, asked: Asked, greedy: Sequence[tuple[str, str]]) -> None:
    """Judge a server that gives no log-probabilities by its greedy continuations.

    Texts that the base and the adapter continue in one way tell nothing.
    """
    count = 0
    as_base = 0
    as_adapter = 0
    for (of_base, of_adapter), answer in zip(greedy, asked.adapter, strict=False):
        if of_base != of_adapter:
            count += 1
            as_base += answer == of_base
            as_adapter += answer == of_adapter
    verdict.numbers |= {"texts": count, "as adapter": as_adapter, "as base": as_base}
    counts = f"{as_adapter} of {count} greedy texts are the adapter's, {as_base} the base's"
    is_clear = count >= LEAST_TEXTS and max(as_adapter, as_base) >= 0.75 * count
    cases = [
        Case(
            not is_clear,
            Word.UNKNOWN,
            f"the server gives no log-probabilities, and {counts}",
        ),
        Case(
            as_adapter > as_base,
            Word.APPLIED,
            f"'{verdict.adapter}' answers as base + adapter ({counts})",
        ),
        Case(
            True,
            Word.NOT_APPLIED,
            f"'{verdict.adapter}' answers as the base ({counts})",
        ),
    ]
    _give(verdict, cases)
    if verdict.word == Word.APPLIED:
        verdict.not_tested.append("its scale and its parts: the server gives no log-probabilities")


def problems_in(verdicts: Sequence[Verdict], model: str) -> Iterator[Problem]:
    """Return what is wrong with verdicts: at most two problems a server. A fault decides the exit code."""
    bad = {verdict.adapter for verdict in verdicts if _has_error(verdict)}
    if len(verdicts) > 1 and bad:
        total = len({verdict.adapter for verdict in verdicts})
        yield codes.FILES_DO_NOT_FIT(count=len(bad), total=total, model=model)
    unknown: dict[str, list[Verdict]] = {}
    faulty: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        if verdict.word == Word.UNKNOWN:
            unknown.setdefault(verdict.server, []).append(verdict)
        elif verdict.server and verdict.word != Word.APPLIED:
            faulty.setdefault(verdict.server, []).append(verdict)
    for url, of_server in faulty.items():
        words = " and ".join(dict.fromkeys(verdict.word for verdict in of_server))
        yield codes.NOT_AS_TRAINED(url=url, name=_names(of_server), words=words)
    for url, of_server in unknown.items():
        problem = codes.CANNOT_JUDGE(url=url, name=_names(of_server))
        if len(verdicts) == 1 and verdicts[0].error is not None:
            problem = verdicts[0].error
        yield replace(problem, severity="warning") if faulty else problem


def _has_error(verdict: Verdict) -> bool:
    return any(problem.severity == "error" for problem in verdict.problems)


def _names(verdicts: Sequence[Verdict]) -> str:
    names = [f"'{name}'" for name in dict.fromkeys(verdict.adapter for verdict in verdicts)]
    more = len(names) - MOST_NAMES
    if more > 1:
        names[MOST_NAMES:] = [f"and {more} more"]
    return ", ".join(names)
