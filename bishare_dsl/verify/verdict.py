"""Verdicts, and the rows of a table of adapters and servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from bishare_dsl.diagnostics import Problem, as_json
from bishare_dsl.diagnostics.codes import verify as codes
from bishare_dsl.verify.answers import Asked
from bishare_dsl.verify.server import ServerError

APPLIED, NOT_APPLIED, AS_IF = "APPLIED", "NOT APPLIED", "AS IF"
OTHER_TENSORS, ANOTHER, STALE = "OTHER TENSORS", "ANOTHER ADAPTER", "STALE"
NOT_THERE, UNKNOWN = "NOT THERE", "cannot be judged"
FITS, DOES_NOT_FIT = "fits", "does not fit"

MOST_NOISE = 0.3
"""The limit for differences between the base's answers to the same texts; rounding causes less."""

BUSY = "the base answers the same texts differently (by {noise:.2f}): try again when no other requests run"


@dataclass
class Verdict:
    """The result for an adapter on a server.

    Attributes:
        word: `APPLIED`, a fault, or `UNKNOWN`.
        why: the evidence in one sentence.
        unseen: possible faults that were not tested.
        numbers: the distances, in natural logarithms.
    """

    word: str = UNKNOWN
    why: str = ""
    unseen: list[str] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)

    def says(self, word: str, why: str) -> None:
        """Set the word and the evidence."""
        self.word, self.why = word, why


@dataclass
class Row:
    """An adapter on a server, or its files alone if ``server`` is empty."""

    adapter: str
    server: str
    verdict: Verdict
    files: str = ""
    problems: Sequence[Problem] = ()
    error: Problem | None = None

    @property
    def why(self) -> str:
        """The evidence, with the first problem of the files."""
        problems = [f"files: {problem.code} {problem.message}" for problem in self.problems[:1]]
        more = [f"and {len(self.problems) - 1} more"] if len(self.problems) > 1 else []
        return "; ".join(filter(None, [self.verdict.why, *problems, *more]))

    def answered(self, asked: Asked | ServerError, judge: Callable[[Asked], Verdict]) -> Row:
        """Return the row with the verdict on an answer, or on a missing one."""
        if isinstance(asked, Asked):
            return replace(self, verdict=judge(asked))
        problem = asked.problems[0]
        word = NOT_THERE if asked.status in (400, 404) else UNKNOWN
        return replace(self, verdict=Verdict(word, problem.message), error=problem)

    def data(self) -> dict[str, Any]:
        """Return the row as JSON."""
        row: dict[str, Any] = {"adapter": self.adapter, "server": self.server, "files": self.files}
        return {**row, "problems": [*map(as_json, self.problems)], **asdict(self.verdict)}


def problems_in(rows: Sequence[Row], model: str) -> Iterator[Problem]:
    """Return what is wrong with rows, as few problems. A fault decides the exit code, if there is one."""
    bad = [r for r in rows if not r.server and any(p.severity == "error" for p in r.problems)]
    if len(rows) > 1 and bad:
        yield codes.FILES_DO_NOT_FIT(count=len(bad), total=len(rows), model=model)
    unknown = [row for row in rows if row.verdict.word == UNKNOWN]
    faulty = [row for row in rows if row.server and row.verdict.word not in (APPLIED, UNKNOWN)]
    for some, code in ((faulty, codes.NOT_AS_TRAINED), (unknown, codes.CANNOT_JUDGE)):
        if some:
            name = "', '".join(dict.fromkeys(row.adapter for row in some))
            words = " and ".join(dict.fromkeys(row.verdict.word for row in some))
            problem = code(name=name, words=words)
            problem = rows[0].error or problem if some is unknown and len(rows) == 1 else problem
            yield replace(problem, severity="warning") if some is unknown and faulty else problem
