"""Convert between offsets in a text and an editor's lines and columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lsprotocol.types import Position, PositionEncodingKind, Range

from bishare_dsl.diagnostics import Source, Span

_WIDTHS: dict[str, Callable[[str], int]] = {
    PositionEncodingKind.Utf8: lambda text: len(text.encode()),
    PositionEncodingKind.Utf16: lambda text: len(text) + sum(char > "\uffff" for char in text),
    PositionEncodingKind.Utf32: len,
}


@dataclass(frozen=True)
class Positions:
    """The positions of a text, with columns in the unit that server and editor agreed on."""

    source: Source
    unit: str = PositionEncodingKind.Utf16

    def position(self, offset: int) -> Position:
        """Return the line and column of a character, both from 0."""
        line, column = self.source.position(offset)
        before = self.source.line(line)[: column - 1]
        return Position(line - 1, _WIDTHS[self.unit](before))

    def range(self, span: Span) -> Range:
        """Return the lines and columns of a span."""
        return Range(self.position(span.start), self.position(span.end))

    def offset(self, position: Position) -> int:
        """Return the offset of a line and column, at most the end of the line or text."""
        lines = self.source.text.split("\n")
        if position.line >= len(lines):
            return self.source.start + len(self.source.text)
        line = lines[position.line]
        width = _WIDTHS[self.unit]
        column = counted = 0
        while column < len(line) and counted < position.character:
            counted += width(line[column])
            column += 1
        return self.source.start + sum(len(above) + 1 for above in lines[: position.line]) + column
