"""Keeping what lm_eval prints off the terminal, and its log for the user."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO


@contextmanager
def capture_logs(
    said: list[str], *, bars: bool = False, level: int = logging.WARNING
) -> Iterator[None]:
    """Let nothing be printed in a block, and capture what lm_eval logs.

    Args:
        said: gets what is logged, once for each place in lm_eval's code, with how often it came.
        bars: leave standard error, where the progress bars are, as it is.
        level: from which on lm_eval logs.
    """
    from transformers.utils import logging as transformers_logging

    logger, logged = logging.getLogger("lm_eval"), _Logged(level)
    before, verbosity = logger.level, transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    logger.addHandler(logged)
    logger.setLevel(level)
    try:
        with redirect_stdout(StringIO()), redirect_stderr(sys.stderr if bars else StringIO()):
            yield
    finally:
        logger.removeHandler(logged)
        logger.setLevel(before)
        transformers_logging.set_verbosity(verbosity)
        for first, *more in logged.places.values():
            said.append(f"{first} (and {len(more):,} more like it)" if more else first)


class _Logged(logging.Handler):
    """Keeps records by their places in lm_eval's code."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.places: dict[tuple[str, int], list[str]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != "lm_eval.evaluator":  # It repeats the settings that it was given.
            text = " ".join(record.getMessage().split())
            self.places.setdefault((record.name, record.lineno), []).append(text)
