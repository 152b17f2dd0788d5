"""Problems as data, and suggestions for misspelled names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import field, replace
from typing import Literal

from bishare_dsl.diagnostics.record import Record
from bishare_dsl.diagnostics.source import Loc, Span
from bishare_dsl.resources import error_index

Severity = Literal["error", "warning", "note"]


class Edit(Record):
    """A replacement for the text of a span."""

    span: Span
    text: str


class Problem(Record):
    """A problem, without its rendering (`render`).

    ``loc`` is the faulty part of a spec, or ``span`` the faulty text if it could not be parsed. ``also``
    locates the first of two duplicates. ``help`` says what to do, and ``edits`` do it. ``fact`` is a record
    of what the compiler found, from which `bishare_dsl.advice` makes help and edits.
    """

    code: str
    message: str
    loc: Loc = ()
    help: str | None = None
    severity: Severity = "error"
    span: Span | None = None
    edits: tuple[Edit, ...] = ()
    also: Loc | Span | None = None
    fact: object = None

    def within(self, *prefix: str | int) -> Problem:
        """Return the problem with the location of an enclosing part prepended."""
        return replace(self, loc=(*prefix, *self.loc))


class Code(Record):
    """An entry of the registry.

    Its title and remedy are in the index of `docs/errors`. Some codes have a page there, with details and
    examples.
    """

    code: str
    message: str
    severity: Severity = field(default="error", kw_only=True)

    @property
    def remedy(self) -> str | None:
        """The default help of a problem."""
        return error_index()[self.code][1] or None

    def __call__(
        self,
        *,
        loc: Loc = (),
        span: Span | None = None,
        help: str | None = None,
        edits: tuple[Edit, ...] = (),
        also: Loc | Span | None = None,
        fact: object = None,
        **values: object,
    ) -> Problem:
        """Create a problem with this code; ``values`` fill the message."""
        message = self.message.format(**values)
        help = help or self.remedy
        return Problem(
            code=self.code,
            message=message,
            loc=loc,
            help=help,
            severity=self.severity,
            span=span,
            edits=edits,
            also=also,
            fact=fact,
        )


def warning(code: str, message: str) -> Code:
    """Make an entry for a warning."""
    return Code(code, message, severity="warning")


def note(code: str, message: str) -> Code:
    """Make an entry for a note."""
    return Code(code, message, severity="note")


def near_names(name: str, valid: Iterable[str]) -> list[str]:
    """Return the nearest of the valid names: those within about one typo in three letters.

    Without such a name, return those that start or end with the given one.
    """
    names = sorted({*valid} - {name})
    numbers = re.compile(r"_\d+")
    # Whoever writes another number means another name.
    others = [other for other in names if numbers.sub("_", other) != numbers.sub("_", name)]
    distances = {other: _distance(name.lower(), other.lower()) for other in others}
    least = min(distances.values(), default=len(name))
    if least <= (len(name) + 1) // 3:
        return [other for other in others if distances[other] == least]
    part = name.lower() if len(name) > 2 else f"{name.lower()}_"
    return [v for v in names if v.lower().startswith(part) or v.lower()[1:].endswith(part)]


def nearest(name: str, valid: Iterable[str], few: int = 12) -> str | None:
    """Write a help line with the nearest valid names, or all of them if there are at most ``few``."""
    valid = {*valid}
    near = near_names(name, valid)
    if 0 < len(near) < 4:
        return f"did you mean {' or '.join(f'`{other}`' for other in near)}?"
    names = sorted(valid - {name})
    if not 0 < len(names) <= few:
        return None
    return f"valid here: {', '.join(f'`{other}`' for other in names)}"


def _distance(one: str, other: str) -> int:
    """Count the insertions, deletions, substitutions and swaps between two words (Damerau-Levenshtein)."""
    if abs(len(one) - len(other)) > (len(one) + 1) // 3:
        return len(one) + len(other)
    before: list[int] = [*range(len(other) + 1)]
    last = before
    for i, letter in enumerate(one, 1):
        row = [i]
        for j, wanted in enumerate(other, 1):
            row.append(min(before[j - 1] + (letter != wanted), before[j] + 1, row[-1] + 1))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                row[-1] = min(row[-1], last[j - 2] + 1)
        last = before
        before = row
    return before[-1]
