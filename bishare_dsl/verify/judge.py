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
from typing import Any

import numpy as np

from bishare_dsl.diagnostics import Problem, as_json
from bishare_dsl.diagnostics.codes import verify as codes
from bishare_dsl.verify.server import Answer, Asked, ServerError, distance, rms

APPLIED, NOT_APPLIED, AS_IF = "APPLIED", "NOT APPLIED", "AS IF"
OTHER_TENSORS, ANOTHER, STALE = "OTHER TENSORS", "ANOTHER ADAPTER", "STALE"
NOT_THERE, UNKNOWN = "NOT THERE", "cannot be judged"
FITS, DOES_NOT_FIT = "fits", "does not fit"

NONE, WHOLE, WITHOUT = "the base alone", "the whole adapter", "without "

MOST_NOISE = 0.3
"""The limit for differences between the base's answers to the same texts; rounding causes less."""

OTHER_BASE = 0.2
"""The distance between the server's base and the expected one above which their weights differ."""

LEAST_FLOOR = 1e-3
"""A bound for the difference between two programs in float32, and for the digits of a card."""

LEAST_EFFECT = 4
"""The smallest effect whose distances are judged, in units of the server's rounding."""

_LEAST_TOKENS, _LEAST_TEXTS = 24, 3
"""The fewest tokens, and greedy texts that tell the base from the adapter, that a verdict takes."""


@dataclass
class Row:
    """An adapter on a server, or its files alone if ``server`` is empty.

    Attributes:
        adapter: its name.
        server: the URL.
        files: what the files contain.
        problems: problems of the files.
        word: the verdict: `APPLIED`, a fault, or `UNKNOWN`.
        why: the evidence in one sentence.
        unseen: possible faults that were not tested.
        numbers: the distances, in natural logarithms.
        error: why there is no answer.
    """

    adapter: str
    server: str = ""
    files: str = ""
    problems: Sequence[Problem] = ()
    word: str = UNKNOWN
    why: str = ""
    unseen: list[str] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)
    error: Problem | None = None

    def says(self, word: str, why: str) -> None:
        """Set the word and the evidence."""
        self.word, self.why = word, why

    def evidence(self) -> str:
        """Return the evidence, with the first problem of the files."""
        problems = [f"files: {problem.code} {problem.message}" for problem in self.problems[:1]]
        more = [f"and {len(self.problems) - 1} more"] if len(self.problems) > 1 else []
        return "; ".join(filter(None, [self.why, *problems, *more]))

    def data(self) -> dict[str, Any]:
        """Return the row as JSON."""
        row = {name: value for name, value in vars(self).items() if name != "error"}
        return row | {"problems": [*map(as_json, self.problems)]}


@dataclass(frozen=True)
class Expected:
    """What a server should answer.

    Attributes:
        columns: the column of each token, by its id and by its text.
        answers: the log-probabilities by ways of applying the adapter, of which `NONE` and `WHOLE` are two,
            ``(texts, columns)``; NaN where they are not known.
        greedy: the greedy continuations of each text, of the base and of the adapter.
    """

    columns: Mapping[int | str, int]
    answers: Mapping[str, np.ndarray]
    greedy: Sequence[tuple[str, str]] = ()


def judge(row: Row, asked: Asked | ServerError, expected: Expected | None) -> Row:
    """Write the verdict on a server's answers into a row, and return it.

    Args:
        row: of the adapter on the server.
        asked: the answers.
        expected: the right ones; without, only an ignored adapter is detected.
    """
    if isinstance(asked, ServerError):
        row.error = asked.problems[0]
        row.says(NOT_THERE if asked.status in (400, 404) else UNKNOWN, row.error.message)
        return row
    moved, exact = distance(asked.adapter, asked.base), asked.noise == 0
    row.numbers |= {"noise": asked.noise, "moved": moved}
    if asked.noise > MOST_NOISE:
        row.why = f"the base answers the same texts differently (by {asked.noise:.2f}): "
        row.why += "try again when no other requests run"
    elif isinstance(asked.base[0], str):
        _compare_texts(row, asked, expected.greedy if expected else ())
    elif exact and asked.adapter == asked.base:
        row.says(NOT_APPLIED, f"'{row.adapter}' answers all texts as the base, bit for bit")
    elif expected is None:
        lacking = "more takes --model with weights, and files that fit"
        row.why = f"'{row.adapter}' differs from the base by {moved:.3g}; {lacking}"
    else:
        _compare(row, asked, expected)
    if asked.long is None:
        row.unseen.append("older tensors in a prefix cache: texts of 300 tokens are refused")
    elif exact and row.word in (APPLIED, UNKNOWN) and (off := distance(*asked.long)):
        why = f"a long text has {off:.2g} of what older tensors left in the prefix cache"
        row.says(STALE, f"{why}: reset that cache, or load the adapter under a new name")
    return row


def _compare(row: Row, asked: Asked, expected: Expected) -> None:
    """Find the way of applying the adapter whose answers are nearest, and complete the verdict."""
    none = expected.answers[NONE]

    def located(answers: Sequence[Answer]) -> dict[tuple[int, int], float]:
        return {
            (text, column): value
            for text, answer in enumerate(answers)
            for token, value in (answer.items() if isinstance(answer, dict) else ())
            if (column := expected.columns.get(token, -1)) >= 0
            and not math.isnan(none[text, column])
        }

    base, mine = located(asked.base), located(asked.adapter)
    if len(base) < _LEAST_TOKENS or not mine:
        whose = "base" if len(base) < _LEAST_TOKENS else "adapter"
        row.why = f"the server's {whose} has other tokens, or is another model"
        return
    floor = max(rms([x - none[place] for place, x in base.items()]), LEAST_FLOOR, asked.noise)
    texts, columns = np.array([*mine]).T
    moves = {words: (some - none)[texts, columns] for words, some in expected.answers.items()}
    shift = np.array([base.get(place, math.nan) for place in mine]) - none[texts, columns]
    found = np.array([*mine.values()]) - none[texts, columns]
    # Subtracting the server's own base cancels the shift of a quantised one.
    apart = [
        {words: rms(some - move) for words, move in moves.items()}
        for some in (found, found - np.nan_to_num(shift))
    ]
    errors = min(apart, key=lambda distances: min(distances.values()))
    effect, slope, correlation = rms(moves[WHOLE]), 0.0, 0.0
    x, y = (some[~np.isnan(shift)] for some in (moves[WHOLE], found - shift))
    if len(x) >= _LEAST_TOKENS and x.any() and y.any():
        slope, correlation = float(x @ y / (x @ x)), float(x @ y / math.sqrt((x @ x) * (y @ y)))
    best, *_ = ranked = sorted(errors, key=lambda words: np.nan_to_num(errors[words], nan=np.inf))
    near = [words for words in ranked if errors[words] <= errors[best] + 0.2 * floor]
    row.numbers |= {"floor": floor, "effect": effect, "error": errors[WHOLE]}
    row.numbers |= {"slope": slope, "correlation": correlation}
    row.numbers |= {f"as if {words}": errors[words] for words in near if words != WHOLE}
    who = f"'{row.adapter}' answers"
    both = f"{errors[best]:.2g} from {best}, {errors[WHOLE]:.2g} from the whole"
    small = not effect >= LEAST_EFFECT * floor  # Also if it is not a number.
    off = errors[best] > 1.5 * floor * math.hypot(1, effect)  # A server rounds the update, too.
    follows = correlation >= 0.9 and 0.75 <= slope <= 1.33
    if small and not (follows and WHOLE in near):
        tiny = f"the effect is {effect:.2g}, and this server's rounding is {floor:.2g}"
        row.why = f"{tiny}: ask one that runs in float32"
    elif off and not small and correlation >= 0.97 and not follows:
        row.says(AS_IF, f"{who} as the adapter at {slope:.2g} of its scale ({both})")
    elif off and not small:
        why = f"{who} in no known way of applying this adapter ({both})"
        row.says(OTHER_TENSORS, f"{why}: an older version, another adapter, or another base")
    elif WHOLE in near:
        why = f"{errors[WHOLE]:.2g} from it, {errors[NONE]:.2g} from the base, rounding {floor:.2g}"
        row.says(APPLIED, f"{who} as base + adapter ({why})")
        small_parts = [w for w, move in moves.items() if rms(moves[WHOLE] - move) < floor]
        if kinds := [w.removeprefix(WITHOUT) for w in small_parts if w.startswith(WITHOUT)]:
            row.unseen.append(f"{', '.join(kinds)}, whose effect is below the rounding")
        row.unseen += ["each part of it: a card proves the whole"] if len(moves) == 2 else []
        row.unseen.append("what may be left in unused ranks of its slot")
    elif best == NONE:
        row.says(NOT_APPLIED, f"{who} as the base, or something much weaker ({both})")
    else:
        row.says(AS_IF, f"{who} as the adapter {', or '.join(near)} ({both})")
    if floor > OTHER_BASE:
        row.why += f"; the base is {floor:.2g} from the expected one: another base, or quantised"


def _compare_texts(row: Row, asked: Asked, greedy: Sequence[tuple[str, str]]) -> None:
    """Judge a server that gives no log-probabilities by its greedy continuations.

    Texts that the base and the adapter continue in one way tell nothing.
    """
    pairs = zip(greedy, asked.adapter, strict=False)
    told = [(base, whole, found) for (base, whole), found in pairs if base != whole]
    as_base = sum(found == base for base, _, found in told)
    as_whole = sum(found == whole for _, whole, found in told)
    count = f"{as_whole} of {len(told)} greedy texts are the adapter's, {as_base} the base's"
    row.numbers |= {"texts": len(told), "as adapter": as_whole, "as base": as_base}
    if len(told) < _LEAST_TEXTS or max(as_whole, as_base) < 0.75 * len(told):
        row.why = f"the server gives no log-probabilities, and {count}"
    elif as_base < as_whole:
        row.says(APPLIED, f"'{row.adapter}' answers as base + adapter ({count})")
        row.unseen.append("its scale and its parts: the server gives no log-probabilities")
    else:
        row.says(NOT_APPLIED, f"'{row.adapter}' answers as the base ({count})")


def problems_in(rows: Sequence[Row], model: str) -> Iterator[Problem]:
    """Return what is wrong with rows, as few problems. A fault decides the exit code, if there is one."""
    bad = {row.adapter for row in rows if any(p.severity == "error" for p in row.problems)}
    if len(rows) > 1 and bad:
        total = len({row.adapter for row in rows})
        yield codes.FILES_DO_NOT_FIT(count=len(bad), total=total, model=model)
    unknown = [row for row in rows if row.word == UNKNOWN]
    faulty = [row for row in rows if row.server and row.word not in (APPLIED, UNKNOWN)]
    for some, code in ((faulty, codes.NOT_AS_TRAINED), (unknown, codes.CANNOT_JUDGE)):
        if some:
            name = "', '".join(dict.fromkeys(row.adapter for row in some))
            words = " and ".join(dict.fromkeys(row.word for row in some))
            problem = code(name=name, words=words)
            problem = rows[0].error or problem if some is unknown and len(rows) == 1 else problem
            yield replace(problem, severity="warning") if some is unknown and faulty else problem
