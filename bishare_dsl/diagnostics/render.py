"""Render a problem for a terminal: code, location, underlined source line and help."""

from __future__ import annotations

import unicodedata
from math import inf
from textwrap import wrap
from typing import Any

from bishare_dsl.diagnostics.problem import Problem
from bishare_dsl.diagnostics.source import SourceMap, Span

_WIDEST = 100


def _columns(text: str) -> int:
    """Count the terminal columns of ``text``: East Asian wide characters take two, combining marks none."""
    width = unicodedata.east_asian_width
    return sum(0 if unicodedata.combining(c) else 1 + (width(c) in "WF") for c in text)


def escaped(text: str) -> str:
    """Return text for one line of output: non-printable characters are escaped as in Python."""
    if text.isprintable():
        return text
    parts = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(parts)


def _printable(text: str) -> str:
    """Return ``text`` with tabs as single spaces and control characters as visible dots."""
    return "".join(" " if char == "\t" else char if char.isprintable() else "·" for char in text)


def render(problem: Problem, where: SourceMap | None = None, width: float = inf) -> str:
    """Render a problem as text: several lines if it has a location, none wider than ``width``.

    Names, paths and texts are escaped, so they cannot add lines or control the terminal.
    """
    head = _fitted(f"{problem.severity}[{problem.code}]: {escaped(problem.message)}", width)
    tail = "\n" + _fitted(f"  = help: {escaped(problem.help)}", width) if problem.help else ""
    span = problem.span or (where.locate(problem.loc) if where else None)
    if span is None or where is None:
        parts = (f"[{p}]" if isinstance(p, int) else f".{p}" for p in problem.loc)
        place = "".join(parts).lstrip(".")
        return f"{head}{f' (at {escaped(place)})' if place else ''}{tail}"
    source = where.source_of(span)
    line, column = source.position(span.start)
    text = source.line(line)
    long = min(span.end, span.start + len(text) - column + 1) - span.start
    gutter = " " * len(str(line))
    # For a long line, show a window around the fault.
    room = int(max(20, min(_WIDEST, width - len(gutter) - 3)))
    left = max(0, column - 1 - room // 2) if len(text) > room else 0
    shown = _printable(text[left : left + room])
    before = _printable(text[left : column - 1])
    marked = _printable(text[column - 1 : min(column - 1 + max(long, 0), left + room)])
    other = _other(problem, where)
    beside = f"\n  = note: the other is at {escaped(where.place(other))}" if other else ""
    uses = "".join(f"\n  = note: used at {escaped(where.place(use))}" for use in where.uses(span))
    return (
        f"{head}\n{gutter}--> {escaped(source.name)}:{line}:{column}\n{gutter} |\n{line} | {shown}\n"
        f"{gutter} | {' ' * _columns(before)}{'^' * max(1, _columns(marked))}{beside}{uses}{tail}"
    )


def _fitted(text: str, width: float) -> str:
    """Wrap a text, and indent all lines but the first."""
    if len(text) <= width:
        return text
    indent = " " * (10 if text.startswith(" ") else 4)
    lines = wrap(text, int(max(width, 20)), subsequent_indent=indent, break_on_hyphens=False)
    return "\n".join(lines)


def _other(problem: Problem, where: SourceMap) -> Span | None:
    """Return the span of a problem's duplicate, if it has one."""
    return where.locate(problem.also) if isinstance(problem.also, tuple) else problem.also


def as_json(problem: Problem, where: SourceMap | None = None) -> dict[str, Any]:
    """Return a problem as plain JSON values; line and column start at 1, and are omitted without a text.

    ``used_at`` lists the lines that use the file, nearest first, and is omitted for the main file.
    ``other_at`` locates the duplicate.
    """
    names = ("code", "severity", "message", "help")
    record: dict[str, Any] = {name: getattr(problem, name) for name in names}
    record["loc"] = list(problem.loc)
    span = problem.span or (where.locate(problem.loc) if where else None)
    if span is not None and where is not None:
        end_line, end_column = where.source_of(span).position(span.end)
        record |= _placed(where, span) | {"end_line": end_line, "end_column": end_column}
        if other := _other(problem, where):
            record["other_at"] = _placed(where, other)
        if uses := where.uses(span):
            record["used_at"] = [_placed(where, use) for use in uses]
    return record


def _placed(where: SourceMap, span: Span) -> dict[str, Any]:
    source = where.source_of(span)
    line, column = source.position(span.start)
    return {"file": source.name, "line": line, "column": column}
