"""Tables of text."""

from __future__ import annotations

from collections.abc import Collection

from bishare_dsl.diagnostics import escaped


def table(head: list[str], rows: list[list[str]], left: Collection[int]) -> str:
    """Set columns under their heads; numbers to the right, the columns of ``left`` to the left."""
    rows = [[escaped(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
