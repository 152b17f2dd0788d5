"""What is wrong, as data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Literal

from bishare_dsl.diagnostics.source import Loc, Span

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Edit:
    """Text to be written in place of the characters of a span."""

    span: Span
    text: str


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding. Drawing it (`render`) is a separate act.

    ``loc`` names the part of the spec that is wrong; ``span`` the characters of the text, where a
    finding is about text that never became a spec; ``also`` is where that stands which is said again here.
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
        """Return the same problem as seen from a part that contains the one it was found in."""
        return replace(self, loc=(*prefix, *self.loc))


@dataclass(frozen=True, slots=True)
class Code:
    """An entry of the registry: what a code means.

    ``remedy`` is the help of a problem that brings none of its own. Its title stands in the index of
    `docs/errors`; what there is to say beyond that, with examples, is the code's page there, if it has one.
    """

    code: str
    message: str
    remedy: str | None = None
    severity: Severity = "error"

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
    """Write a help line naming the nearest valid name, or all of them where they are ``few`` or fewer."""
    names = sorted({*valid} - {name})
    small = {valid_name.lower(): valid_name for valid_name in reversed(names)}
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    if close := close or [
        small[n] for n in get_close_matches(name.lower(), small, n=1, cutoff=0.8)
    ]:
        return f"did you mean `{close[0]}`?"
    if 0 < len(names) <= few:
        return "valid here: " + ", ".join(f"`{valid_name}`" for valid_name in names)
    return None
