"""The exceptions of bishare, which contain problems."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bishare_dsl.diagnostics.problem import Problem
from bishare_dsl.diagnostics.render import render
from bishare_dsl.diagnostics.source import SourceMap


class BishareError(Exception):
    """An error that users can fix. It contains all problems, not only the first.

    ``where`` is the text of the problems and its spans, if there is one.
    """

    def __init__(self, problems: Iterable[Problem] | Problem, where: SourceMap | None = None):
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        self.where = where
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(render(problem, self.where) for problem in self.problems)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.problems, self.where)


class SpecError(BishareError):
    """A spec's text or meaning is wrong, independent of a model."""


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
    """A harmless but probably unintended part of a spec or an adapter."""


def raise_errors(error: type[BishareError], problems: Sequence[Problem]) -> None:
    """Raise ``error`` with all of ``problems`` if any is an error, not if all are warnings."""
    if any(problem.severity == "error" for problem in problems):
        raise error(problems)


def one_line(error: BaseException) -> str:
    """Return the message of an exception, short enough for use inside another message; or its class.

    For a system error this is the reason; for Pydantic, the first problem with its location.
    """
    return lines_of(error, 1)[0]


def lines_of(error: BaseException, most: int) -> list[str]:
    """Return messages as `one_line` does; for Pydantic, one for each of the first problems."""
    texts = [str(error)]
    if isinstance(error, UnicodeDecodeError):
        texts = [f"it is not UTF-8 (byte {error.start + 1})"]
    elif isinstance(error, OSError):
        texts = [error.strerror or str(error)]
    elif isinstance(error, RecursionError):
        texts = ["it is nested too deep"]
    elif isinstance(error, ValueError) and callable(errors := getattr(error, "errors", None)):
        pairs = ((".".join(map(str, each["loc"])), each["msg"]) for each in errors()[:most])
        texts = [": ".join(filter(None, pair)) for pair in pairs]
    lines = [" ".join(text.split()) or type(error).__name__ for text in texts]
    return [text if len(text) <= 200 else f"{text[:197]}..." for text in lines]
