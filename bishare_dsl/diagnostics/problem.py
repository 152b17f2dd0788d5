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


class Rewrite(Record):
    """A replacement for the text of a part of a spec, in which ``{}`` stands for the old text."""

    loc: Loc
    text: str


class Remedy(Record):
    """A candidate for the advice of a problem, which is tried before it is shown.

    ``help`` says what to write, ``edits`` write it, and ``kind`` is equal for repetitions of one mistake.
    A remedy that is ``also`` possible is said with the best of the others. After a ``guess`` the whole
    statement must be correct; after the remedy of a known mistake it may have other mistakes.
    """

    help: str
    edits: tuple[Edit | Rewrite, ...]
    kind: str = ""
    also: bool = False
    guess: bool = False


class Problem(Record):
    """A problem, without its rendering (`render`).

    ``loc`` is the faulty part of a spec, or ``span`` the faulty text if it could not be parsed. ``also``
    locates the first of two duplicates. ``help`` states what was expected or what to do. ``edits`` apply
    this. ``remedies`` are candidates for both, in the order of preference.
    """

    code: str
    message: str
    loc: Loc = ()
    help: str | None = None
    severity: Severity = "error"
    span: Span | None = None
    edits: tuple[Edit, ...] = ()
    also: Loc | Span | None = None
    remedies: tuple[Remedy, ...] = ()

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
        remedies: tuple[Remedy, ...] = (),
        **values: object,
    ) -> Problem:
        """Create a problem with this code; ``values`` fill the message."""
        message = self.message.format(**values)
        help = help or self.remedy
        return Problem(self.code, message, loc, help, self.severity, span, edits, also, remedies)


def warning(code: str, message: str) -> Code:
    """Make an entry for a warning."""
    return Code(code, message, severity="warning")


def note(code: str, message: str) -> Code:
    """Make an entry for a note."""
    return Code(code, message, severity="note")


def nearest(name: str, valid: Iterable[str], few: int = 12) -> str | None:
    """Write a help line with the nearest valid names, or all of them if there are at most ``few``.

    A name is near if it differs by about one typo in three letters, or starts or ends with the given name.
    """
    names, numbers = sorted({*valid} - {name}), re.compile(r"_\d+")
    first = name.lower() if len(name) > 2 else f"{name.lower()}_"
    begun = [v for v in names if v.lower().startswith(first) or v.lower()[1:].endswith(first)]
    # Who writes another number means another one.
    others = [v for v in names if numbers.sub("_", v) != numbers.sub("_", name)]
    slips = {other: _distance(name.lower(), other.lower()) for other in others}
    least = min(slips.values(), default=len(name))
    near = [v for v in slips if slips[v] == least] if least <= (len(name) + 1) // 3 else begun
    if 0 < len(near) < 4:
        return f"did you mean {' or '.join(f'`{other}`' for other in near)}?"
    listed = ", ".join(f"`{other}`" for other in names[:few])
    return f"valid here: {listed}" if 0 < len(names) <= few else None


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
        last, before = before, row
    return before[-1]
