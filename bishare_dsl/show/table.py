"""Tables of text."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Collection, Iterator, Sequence
from itertools import takewhile

from bishare_dsl.diagnostics import escaped

_GAP = "  "


def table(head: list[str], rows: list[list[str]], left: Collection[int]) -> str:
    """Set columns under their heads; numbers to the right, the columns of ``left`` to the left.

    Columns that a terminal is too narrow for follow in a table below, behind the first columns again.
    """
    rows = [[escaped(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    groups = _groups(widths, list(takewhile(left.__contains__, range(len(head) - 1))))
    return "\n\n".join(_drawn(lines, widths, group, left) for group in groups)


def _drawn(
    lines: list[list[str]], widths: list[int], columns: Sequence[int], left: Collection[int]
) -> str:
    return "\n".join(
        _GAP.join(
            line[i].ljust(widths[i]) if i in left else line[i].rjust(widths[i]) for i in columns
        ).rstrip()
        for line in lines
    )


def _groups(widths: list[int], first: list[int]) -> Iterator[list[int]]:
    """Cut the columns into what fits beside the ``first`` ones; where all fit, that is all."""
    limit = terminal()
    group = list(first)
    for i in range(len(first), len(widths)):
        needed = sum(widths[j] + len(_GAP) for j in (*group, i)) - len(_GAP)
        if needed > limit and len(group) > len(first):
            yield group
            group = list(first)
        group.append(i)
    yield group


def terminal() -> float:
    """Return how many columns a reader sees: those of the terminal, or no end of them in a file."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else float("inf")
