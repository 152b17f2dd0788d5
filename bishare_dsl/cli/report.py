"""The output of a command and its exit code.

| | stream | |
|---|---|---|
| results | stdout | text, or one JSON object with ``--json`` |
| problems | stderr | stdout for ``check``, whose results they are; with ``--json``, inside the object |
| notes | stderr | not with ``--quiet`` |

The exit code is 0 without findings, 1 with findings, and 2 for wrong usage, which wins over 1.
`INTERRUPTED` and `INTERNAL` are two more. No other module decides these.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, redirect_stderr, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TextIO, TypeVar, cast

import click

from bishare_dsl.diagnostics import BishareError, Problem, SourceMap, as_json, escaped, render
from bishare_dsl.diagnostics.codes.adapter import OTHER_FINGERPRINT
from bishare_dsl.show.table import Table, terminal, wrapped, write_tables

if TYPE_CHECKING:
    from bishare_dsl.plan import Plan

_Item = TypeVar("_Item")

FINDINGS = 1
USAGE = 2
INTERNAL = 70
INTERRUPTED = 130
BROKEN_PIPE = 141

_USAGE_CODES = frozenset(
    [
        # A param, folder or format of the command line that is missing or in the way.
        *("BS207", "BS601", "BS602", "BS603", "BS615", "BS616", "BS618", "BS631", "BS646"),
        # Settings of training, its folder, and missing data.
        *(f"BS{number}" for number in (*range(730, 738), 740, 741, 742)),
        *("BS701", "BS703", "BS704"),
        *("BS871", "BS872"),  # An adapter on a server that cannot be judged.
        "BS805",  # An evaluation needs a tokenizer.
        "BS911",  # Runs that cannot be compared.
    ]
)
# Control characters of terminals, except tabs and line breaks.
_CONTROLS = {c: f"\\x{c:02x}" for c in (*range(32), *range(127, 160)) if chr(c) not in "\t\n"}
_COLOURS = {"error": "31", "warning": "33", "note": "36"}
_HEAD = re.compile(r"(?P<severity>error|warning|note)(\[BS\d+\])?:")


class CommandError(BishareError):
    """A mistake in the command line."""


class _Notes:
    """Standard error without what cannot be written, on a full disk or after its reader has ended."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Report:
    """Collect and write the output of a command.

    The options set ``as_json``, ``quiet``, ``allow_use`` and ``strict``. With ``partial`` an
    interrupted command writes the results that it has.
    """

    def __init__(self) -> None:
        self.as_json = self.quiet = self.allow_use = self.strict = False
        self.problems_are_results = self.partial = False
        self.exit_code = 0
        self.errors = self.warnings = 0
        self._data: dict[str, Any] = {}
        self._problems: list[dict[str, Any]] = []

    def stops_no_work(self) -> AbstractContextManager[Any]:
        """Return a context in which notes and problems that cannot be written are left out."""
        return redirect_stderr(cast("TextIO", _Notes(sys.stderr)))

    def result(self, text: str) -> None:
        """Write lines of the result, as text."""
        if not self.as_json:
            sys.stdout.write(text.translate(_CONTROLS) + "\n")

    def tables(self, *parts: str | Table) -> None:
        """Write a result of texts and tables, wrapped to the terminal."""
        if not self.as_json:
            self.result(write_tables(parts))

    def data(self, **values: Any) -> None:
        """Add fields to the JSON result."""
        self._data |= values

    def note(self, *lines: str) -> None:
        """Write progress or advice that the result does not need. Names cannot add lines."""
        if not self.quiet:
            sys.stderr.write("".join(f"{wrapped(escaped(line), sys.stderr)}\n" for line in lines))

    def bar(self, items: Iterable[_Item], label: str, *, hidden: bool = False) -> Iterator[_Item]:
        """Yield items, with a progress bar on a terminal."""
        off = hidden or self.quiet or self.as_json or not sys.stderr.isatty()
        with click.progressbar([*items], label=label, file=sys.stderr, hidden=off) as bar:
            yield from bar

    def tell(self, plan: Plan) -> None:
        """Say what a plan shares, in a note and in the data."""
        from bishare_dsl.show.shared import shared_data, sharing_lines

        if self.as_json:
            self.data(sharing=shared_data(plan))
        self.note(*sharing_lines(plan))

    def problem(self, problem: Problem, where: SourceMap | None = None) -> None:
        """Report one finding. Errors set the exit code. With ``--strict`` another base ends the command."""
        if problem.severity == "error":
            self.errors += 1
            self.exit_code = max(self.exit_code, exit_code_of(problem))
        elif self.strict and problem.code == OTHER_FINGERPRINT.code:
            raise CommandError(replace(problem, severity="error"))
        elif problem.severity == "warning":
            self.warnings += 1
        if self.as_json:
            self._problems.append(as_json(problem, where))
        elif not (self.quiet and problem.severity == "note"):
            stream = sys.stdout if self.problems_are_results else sys.stderr
            stream.write(f"{_painted(render(problem, where, terminal(stream)), stream)}\n")

    def all(self, problems: Iterable[Problem], where: SourceMap | None = None) -> None:
        """Report several findings."""
        for problem in problems:
            self.problem(problem, where)

    def error(self, error: BishareError, where: SourceMap | None = None) -> None:
        """Report all problems of an exception."""
        self.all(error.problems, error.where or where)

    def stop(self, exit_code: int, text: str) -> None:
        """End the command for a reason other than a finding."""
        self.exit_code = exit_code
        sys.stderr.write(f"{_painted(text.translate(_CONTROLS), sys.stderr)}\n")

    def close(self) -> None:
        """Write buffered output and flush it."""
        if self.as_json and (self.exit_code <= USAGE or self.partial):
            import json

            result = {**self._data, "problems": self._problems}
            sys.stdout.write(f"{json.dumps(result, indent=2)}\n")
        sys.stdout.flush()


def silence_libraries() -> None:
    """Silence progress bars and advice that libraries write to standard error.

    Transformers takes over the setting of huggingface_hub when it is imported, so it is not imported here.
    """
    import logging

    # It logs of a model card without metadata.
    logging.getLogger("huggingface_hub.repocard").setLevel(logging.ERROR)
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    if (loaded := sys.modules.get("transformers")) is not None:
        loaded.utils.logging.disable_progress_bar()


def exit_code_of(problem: Problem) -> int:
    """Return 1 for a problem of a spec, an adapter or its fit, and 2 for a problem of the command line.

    The second kind names something that does not exist (BS5xx: the model) or is not understood (BS9xx).
    """
    usage = problem.code.startswith(("BS5", "BS9")) or problem.code in _USAGE_CODES
    return USAGE if usage else FINDINGS


def coloured(stream: TextIO) -> bool:
    """Return whether to colour a stream: a terminal without NO_COLOR, or any stream with FORCE_COLOR."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def _painted(text: str, stream: TextIO) -> str:
    """Colour the severity and the code of a problem."""
    head = _HEAD.match(text)
    if head is None or not coloured(stream):
        return text
    return f"\033[1;{_COLOURS[head['severity']]}m{head[0]}\033[0m{text[head.end() :]}"
