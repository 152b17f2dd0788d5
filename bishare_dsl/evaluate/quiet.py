"""Keeping what lm_eval writes off the terminal, and what of it matters."""

from __future__ import annotations

import io
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path


@contextmanager
def lm_eval_logs(level: int = logging.ERROR, *handlers: logging.Handler) -> Iterator[None]:
    """A block in which lm_eval logs from ``level`` on, to these handlers alone."""
    logger = logging.getLogger("lm_eval")
    before = logger.level, logger.handlers, logger.propagate
    logger.setLevel(level)
    # Without any, Python's own handler of last resort would write to standard error.
    logger.handlers, logger.propagate = list(handlers) or [logging.NullHandler()], False
    try:
        yield
    finally:
        logger.setLevel(before[0])
        logger.handlers, logger.propagate = before[1:]


@contextmanager
def overheard(said: list[str]) -> Iterator[None]:
    """A block in which nothing is written; what would have been is added to ``said``, each thing once.

    Progress bars are dropped, and so are lm_eval's warnings that it does what it was asked to.
    """
    from transformers.utils import logging as transformers_logging

    warnings = _Warnings(logging.WARNING)
    written = _Written()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with (
            _no_git(),
            lm_eval_logs(logging.WARNING, warnings),
            redirect_stdout(written),
            redirect_stderr(written),
        ):
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        lines = [*warnings.lines(), *(line.strip() for line in written.text.splitlines())]
        said += [line for line in dict.fromkeys(lines) if line and line not in said]


@contextmanager
def download_bars(shown: bool) -> Iterator[None]:
    """A block in which data sets are fetched and prepared with progress bars, or without."""
    import datasets
    from huggingface_hub import utils as hub

    disabled = [
        kind for kind in (datasets, hub) if not shown and not kind.are_progress_bars_disabled()
    ]
    for kind in disabled:
        kind.disable_progress_bars()
    try:
        yield
    finally:
        for kind in disabled:
            kind.enable_progress_bars()


@contextmanager
def _no_git() -> Iterator[None]:
    """Where there is no repository, lm_eval asks git for its state all the same, and git complains."""
    from lm_eval import evaluator

    ask = evaluator.get_git_commit_hash
    here = Path.cwd()
    if not any((folder / ".git").exists() for folder in (here, *here.parents)):
        evaluator.get_git_commit_hash = lambda: None
    try:
        yield
    finally:
        evaluator.get_git_commit_hash = ask


class _Warnings(logging.Handler):
    """Keeps the first warning from each place in lm_eval's code, and counts the others."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.first: dict[tuple[str, int], str] = {}
        self.count: Counter[tuple[str, int]] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        place = record.name, record.lineno
        # It repeats the settings that it was given, for every task.
        if record.name != "lm_eval.evaluator":
            self.first.setdefault(place, " ".join(record.getMessage().split()))
            self.count[place] += 1

    def lines(self) -> Iterator[str]:
        for place, text in self.first.items():
            more = self.count[place] - 1
            yield f"{text} (and {more:,} more like it)" if more else text


class _Written(io.TextIOBase):
    """A stream that keeps its text but for progress bars, which start with a carriage return."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        if not text.startswith("\r"):
            self.text += text.replace("\033[A", "")  # from one bar up to another
        return len(text)
