"""Problems as data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from bishare_dsl.diagnostics.source import Loc, Span
from bishare_dsl.resources import error_index

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Edit:
    """Text to be written in place of the characters of a span."""

    span: Span
    text: str


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding. Drawing it (`render`) is a separate act.

    ``loc`` names the part of the spec that is wrong; ``span`` the characters of the text, if the text could
    not be read as a spec; ``also`` the location of the first of two things that are said twice.
    ``help`` says what was expected, or what to do; ``edits`` do it, where the reader of the text knows how.
    """

    code: str
    message: str
    loc: Loc = ()
    help: str | None = None
    severity: Severity = "error"
    span: Span | None = None
    edits: tuple[Edit, ...] = ()
    also: Loc | Span | None = None

    def within(self, *prefix: str | int) -> Problem:
        """Return the problem with its location prefixed by that of an enclosing part."""
        return replace(self, loc=(*prefix, *self.loc))


@dataclass(frozen=True, slots=True)
class Code:
    """An entry of the registry: what a code means.

    Its title and its remedy stand in the index of `docs/errors`; what there is to say beyond that, with
    examples, is the code's page there, if it has one.
    """

    code: str
    message: str
    severity: Severity = field(default="error", kw_only=True)

    @property
    def remedy(self) -> str | None:
        """The help of a problem that has no other."""
        return error_index()[self.code][1] or None

    def __call__(
        self,
        *,
        loc: Loc = (),
        span: Span | None = None,
        help: str | None = None,
        edits: tuple[Edit, ...] = (),
        also: Loc | Span | None = None,
        **values: object,
    ) -> Problem:
        """Make a problem of this code; ``values`` fill the message."""
        message = self.message.format(**values)
        help = help or self.remedy
        return Problem(self.code, message, loc, help, self.severity, span, edits, also)


def nearest(name: str, valid: Iterable[str], few: int = 12) -> str | None:
    """Write a help line naming the nearest valid names, or all of them where they are ``few`` or fewer.

    A name is near that becomes the other by about one slip in three letters, or with which it begins or ends.
    """
    names = sorted({*valid} - {name})
    first = name.lower() if len(name) > 2 else f"{name.lower()}_"
    begun = [v for v in names if v.lower().startswith(first) or v.lower()[1:].endswith(first)]
    slips = {other: _distance(name.lower(), other.lower()) for other in names}
    least = min(slips.values(), default=len(name))
    near = (
        [other for other in names if slips[other] == least]
        if least <= (len(name) + 1) // 3
        else begun
    )
    if 0 < len(near) < 4:
        return f"did you mean {' or '.join(f'`{other}`' for other in near)}?"
    if 0 < len(names) <= few:
        return "valid here: " + ", ".join(f"`{other}`" for other in names)
    return None


def _distance(one: str, other: str) -> int:
    """Count the letters to write, leave out, change or swap (Damerau and Levenshtein) between two words."""
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
        last, before = before, row
    return before[-1]
