"""Output of a run for people: notes and problems."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from bishare_dsl.diagnostics import BishareWarning, Problem, SourceMap, escaped, render


def _note(text: str) -> None:
    with suppress(OSError):  # A note that cannot be written stops no work.
        sys.stderr.write(f"{escaped(text)}\n")


def _problem(problem: Problem, where: SourceMap | None) -> None:
    _warn(render(problem, where))


def _warn(text: str) -> None:
    warnings.warn(text, BishareWarning, stacklevel=5)


@dataclass
class Reporter:
    """Reports notes on standard error and problems as warnings, by default.

    Attributes:
        quiet: whether to hide notes and the progress bar.
        say: receives a note.
        report: receives a problem that does not stop the run.
        warn: receives a rendered warning.
        shows_steps: whether to show the progress bar and the log of each step, unless ``quiet``.
    """

    quiet: bool = False
    say: Callable[[str], None] = _note
    report: Callable[[Problem, SourceMap | None], None] = _problem
    warn: Callable[[str], None] = _warn
    shows_steps: bool = True

    def silence(self) -> None:
        """Stop all output, because another process reports."""
        self.quiet = True
        self.report = lambda *_: None
        self.warn = lambda _: None

    def note(self, *texts: str) -> None:
        """Report events or facts."""
        if not self.quiet:
            for text in texts:
                self.say(text)

    def once(self) -> Reporter:
        """Return a reporter for several runs, which repeats no problem and no warning."""
        problems: set[Problem] = set()
        warnings: set[str] = set()

        def report(problem: Problem, where: SourceMap | None) -> None:
            if problem not in problems:
                problems.add(problem)
                self.report(problem, where)

        def warn(text: str) -> None:
            if text not in warnings:
                warnings.add(text)
                self.warn(text)

        return replace(self, report=report, warn=warn)
