"""Whom a run tells what it does, and what it found."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from bishare_dsl.diagnostics import BishareWarning, Problem, SourceMap, render


class Voice:
    """Notes go to standard error, and problems become warnings, as for any other call from Python.

    Args:
        quiet: whether notes and the progress bar are left out.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._said: set[str] = set()

    def note(self, text: str) -> None:
        """What happens, or what to know."""
        if not self.quiet:
            sys.stderr.write(f"{text}\n")

    def problem(self, problem: Problem, where: SourceMap | None = None) -> None:
        """A finding that stops nothing."""
        self.warn(render(problem, where))

    def warn(self, text: str) -> None:
        """The same, drawn already."""
        warnings.warn(text, BishareWarning, stacklevel=4)

    def problems(self, problems: Iterable[Problem], where: SourceMap | None = None) -> None:
        """Several findings."""
        for problem in problems:
            self._said.add(render(problem, where))
            self.problem(problem, where)

    @contextmanager
    def hearing(self) -> Iterator[None]:
        """A block whose `BishareWarning` are passed on, but for those that were said before."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        for warning in caught:
            if not issubclass(warning.category, BishareWarning):
                warnings.warn_explicit(
                    warning.message, warning.category, warning.filename, warning.lineno
                )
            elif str(warning.message) not in self._said:
                self.warn(str(warning.message))


class Silence(Voice):
    """Of the processes other than the first."""

    def __init__(self) -> None:
        super().__init__(quiet=True)

    def warn(self, text: str) -> None:
        """Nothing."""
