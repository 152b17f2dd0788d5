"""What is wrong, as data: problems, and the one family of exceptions that carries them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Literal

from bishare_dsl.diagnostics.source import Loc, Source, SourceMap, Span

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding. Drawing it (`render`) is a separate act.

    ``loc`` names the part of the spec that is wrong; ``span`` the characters of the text, where a
    finding is about text that never became a spec. ``help`` says what was expected, or what to do.
    """

    code: str
    message: str
    loc: Loc = ()
    help: str | None = None
    severity: Severity = "error"
    span: Span | None = None

    def within(self, *prefix: str | int) -> Problem:
        """The same problem, seen from a part that contains the one it was found in."""
        return replace(self, loc=(*prefix, *self.loc))


@dataclass(frozen=True, slots=True)
class Code:
    """An entry of the registry: what a code means, and a spec that has the problem and one that has not.

    `bad` and `good` are whole specs, or shell commands where ``shell`` is true; the tests run them.
    """

    code: str
    title: str
    message: str
    explanation: str
    bad: str = ""
    good: str = ""
    severity: Severity = "error"
    shell: bool = False

    def __call__(
        self, *, loc: Loc = (), span: Span | None = None, help: str | None = None, **values: object
    ) -> Problem:
        """A problem of this code; ``values`` fill the message."""
        return Problem(self.code, self.message.format(**values), loc, help, self.severity, span)


class BishareError(Exception):
    """Something that the user can mend. Carries every problem found, not the first.

    ``where`` is the text (and the spans in it) that the problems are about, where there is one.
    """

    def __init__(self, problems: Iterable[Problem] | Problem, where: SourceMap | None = None):
        self.problems: tuple[Problem, ...] = (
            (problems,) if isinstance(problems, Problem) else tuple(problems)
        )
        self.where = where
        super().__init__(self.problems)

    def __str__(self) -> str:
        from bishare_dsl.diagnostics.render import render

        return "\n".join(render(problem, self.where) for problem in self.problems)

    def at(self, where: SourceMap | None) -> BishareError:
        """The same error, its problems placed in a text."""
        return type(self)(self.problems, where or self.where)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.problems, self.where)


class SpecError(BishareError):
    """A spec's text or its meaning is wrong, whatever the model."""


class PlanError(BishareError):
    """A spec does not fit a model."""


class ModelError(BishareError):
    """A model cannot be found, read or understood."""


class AdapterError(BishareError):
    """An adapter cannot be saved, loaded, merged or exported."""


class DataError(BishareError):
    """A set of training data cannot be found, read or encoded."""


class BishareWarning(UserWarning):
    """Something about a spec or an adapter that is probably not meant, and does no harm."""


def raise_errors(
    error: type[BishareError], problems: Sequence[Problem], where: SourceMap | None = None
) -> None:
    """Raise ``error`` with all of ``problems`` if any of them is one; warnings alone pass."""
    if any(problem.severity == "error" for problem in problems):
        raise error(problems, where)


def one_line(error: BaseException) -> str:
    """Give an exception's own words, short enough to stand inside a message; or its class.

    Of the system's the reason alone, of Pydantic's the first problem with its place.
    """
    text = str(error)
    if isinstance(error, OSError):
        text = error.strerror or text
    elif isinstance(error, ValueError) and callable(errors := getattr(error, "errors", None)):
        first = errors()[0]
        text = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """A help line naming the nearest valid name, or all of them where they are few."""
    names = sorted(set(valid))
    if close := get_close_matches(name, names, n=1, cutoff=0.6):
        return f"did you mean `{close[0]}`?"
    if 0 < len(names) <= 12:
        return "valid here: " + ", ".join(f"`{valid_name}`" for valid_name in names)
    return None


__all__ = [
    "AdapterError",
    "BishareError",
    "BishareWarning",
    "Code",
    "DataError",
    "ModelError",
    "PlanError",
    "Problem",
    "Source",
    "SpecError",
    "nearest",
    "one_line",
    "raise_errors",
]
