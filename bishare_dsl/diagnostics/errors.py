"""The one family of exceptions, which carries problems."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bishare_dsl.diagnostics.problem import Problem
from bishare_dsl.diagnostics.render import render
from bishare_dsl.diagnostics.source import SourceMap


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
        return "\n".join(render(problem, self.where) for problem in self.problems)

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


class EvaluateError(BishareError):
    """A model cannot be evaluated, or cannot generate (BS8xx)."""


class BishareWarning(UserWarning):
    """Something about a spec or an adapter that is probably not meant, and does no harm."""


def raise_errors(error: type[BishareError], problems: Sequence[Problem]) -> None:
    """Raise ``error`` with all of ``problems`` if any of them is one; warnings alone pass."""
    if any(problem.severity == "error" for problem in problems):
        raise error(problems)


def one_line(error: BaseException) -> str:
    """Return an exception's own words, short enough to stand inside a message; or its class.

    Of the system's the reason alone, of Pydantic's the first problem with its place.
    """
    text = str(error)
    if isinstance(error, OSError):
        text = error.strerror or text
    elif isinstance(error, RecursionError):
        text = "it is nested too deep"
    elif isinstance(error, ValueError) and callable(errors := getattr(error, "errors", None)):
        first = errors()[0]
        text = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."
