"""Tables for a terminal, and to paste into a page or a spreadsheet."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import takewhile
from shutil import get_terminal_size
from textwrap import TextWrapper
from typing import NamedTuple, TextIO

from bishare_dsl.diagnostics import escaped

_GAP = "  "
_MOST_ROWS = 40
"""A longer table is folded."""
_MOST_NAMES = 10
"""Of more names in a line, the first are listed."""


class Table(NamedTuple):
    """A table. The columns in ``left`` hold words and are aligned left; the others hold numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    left: Collection[int] = frozenset({0})

    def __str__(self) -> str:
        """Align columns under their heads.

        Columns that do not fit the terminal follow in a second table, which repeats the first columns.
        """
        rows = [[escaped(cell) for cell in row] for row in self.cells]
        widths = [max(map(len, column)) for column in zip(self.head, *rows, strict=True)]
        lines = [self.head, ["-" * width for width in widths], *rows]
        first = [*takewhile(self.left.__contains__, range(len(self.head) - 1))]
        groups = _groups(widths, first)
        return "\n\n".join(self._aligned(lines, widths, group) for group in groups)

    @property
    def cells(self) -> list[list[str]]:
        """The rows as text: whole numbers have separators of thousands, and None is a dash."""
        return [[*map(_text, row)] for row in self.rows]

    def _aligned(
        self, lines: Iterable[Sequence[str]], widths: Sequence[int], columns: Sequence[int]
    ) -> str:
        align = {i: str.ljust if i in self.left else str.rjust for i in columns}
        rows = ([align[i](line[i], widths[i]) for i in columns] for line in lines)
        return "\n".join(_GAP.join(row).rstrip() for row in rows)


def folded(table: Table) -> Table:
    """Return a long table with one row for all rows that differ in their name alone.

    The name is the first cell. If the result is long still, its end is a count.
    """
    if len(table.rows) <= _MOST_ROWS:
        return table
    names: dict[tuple[object, ...], list[object]] = {}
    for row in table.rows:
        names.setdefault(tuple(row[1:]), []).append(row[0])
    rows: list[list[object]] = []
    for cells, equal in names.items():
        name = equal[0] if len(equal) == 1 else f"{equal[0]} and {len(equal) - 1:,} like it"
        rows.append([name, *cells])
    left_out = len(rows) - _MOST_ROWS
    if left_out > 0:
        count = f"{left_out:,} more (--json has all)"
        rows[_MOST_ROWS:] = [[count, *[""] * (len(table.head) - 1)]]
    return Table(table.head, rows, table.left)


def some_names(names: Sequence[str]) -> str:
    """List names, of many the first and how many more there are."""
    if len(names) <= _MOST_NAMES:
        return ", ".join(names)
    return f"{', '.join(names[:_MOST_NAMES])} and {len(names) - _MOST_NAMES:,} more"


def some_lines(lines: Sequence[str]) -> list[str]:
    """Return lines, of many the first and how many more there are."""
    if len(lines) <= _MOST_ROWS:
        return [*lines]
    return [*lines[:_MOST_ROWS], f"{len(lines) - _MOST_ROWS:,} more lines (--json has all)"]


def write_tables(parts: Iterable[str | Table], *, markdown: bool = False) -> str:
    """Write texts and tables for a terminal, or in Markdown."""
    write = _markdown if markdown else wrapped
    return "\n\n".join(written for part in parts if (written := write(part)))


def _markdown(part: str | Table) -> str:
    if isinstance(part, str):
        return part
    rule = ["---" if i in part.left else "---:" for i in range(len(part.head))]
    lines = (
        [escaped(cell).replace("|", "\\|") for cell in line]
        for line in (part.head, rule, *part.cells)
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(cell: object) -> str:
    return f"{cell:,}" if isinstance(cell, int) else "-" if cell is None else str(cell)


def wrapped(part: str | Table, stream: TextIO | None = None) -> str:
    """Wrap text to the width of a stream's terminal, between words. Tables wrap themselves."""
    if isinstance(part, Table):
        return str(part)
    how = TextWrapper(
        terminal(stream), subsequent_indent=_GAP, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(how.fill(line) for line in part.split("\n"))


def _groups(widths: Sequence[int], first: list[int]) -> Iterator[list[int]]:
    """Split the columns into groups that fit next to the ``first`` columns."""
    limit = terminal()
    group = list(first)
    for i in range(len(first), len(widths)):
        needed = sum(widths[j] + len(_GAP) for j in (*group, i)) - len(_GAP)
        if needed > limit and len(group) > len(first):
            yield group
            group = list(first)
        group.append(i)
    yield group


def terminal(stream: TextIO | None = None) -> int:
    """Return the width of a stream's terminal (standard output by default), or a large number for a file."""
    return get_terminal_size().columns if (stream or sys.stdout).isatty() else sys.maxsize
