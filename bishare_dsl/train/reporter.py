"""Reporting what a run does, and what it finds."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from bishare_dsl.diagnostics import BishareWarning, Problem, SourceMap, escaped, render


def _note(text: str) -> None:
    sys.stderr.write(f"{escaped(text)}\n")


def _problem(problem: Problem, where: SourceMap | None) -> None:
    _warn(render(problem, where))


def _warn(text: str) -> None:
    warnings.warn(text, BishareWarning, stacklevel=5)


@dataclass
class Reporter:
    """By default notes go to standard error, and findings become warnings, as of any call from Python.

    Attributes:
        quiet: whether notes and the progress bar are left out.
        say: takes a note.
        report: takes a problem that stops nothing.
        warn: takes a warning that has been rendered already.
    """

    quiet: bool = False
    say: Callable[[str], None] = _note
    report: Callable[[Problem, SourceMap | None], None] = _problem
    warn: Callable[[str], None] = _warn

    def silence(self) -> None:
        """Say nothing any more: another process does."""
        self.quiet = True
        self.report, self.warn = (lambda *_: None), (lambda _: None)

    def note(self, text: str) -> None:
        """Say what happens, or what to know."""
        if not self.quiet:
            self.say(text)
