"""Where in a text something stands: a source, a span of it, and the way from a spec's part to its span."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property

Loc = tuple[str | int, ...]
"""A path into a spec, as Pydantic writes it: ``("shares", 1, "rank")``."""


@dataclass(frozen=True, slots=True)
class Span:
    """Characters ``start`` (inclusive) to ``end`` (exclusive) of a text."""

    start: int
    end: int


@dataclass(frozen=True)
class Source:
    """A named text; knows its lines."""

    name: str
    text: str

    @cached_property
    def _line_starts(self) -> list[int]:
        return [0, *(i + 1 for i, char in enumerate(self.text) if char == "\n")]

    def position(self, offset: int) -> tuple[int, int]:
        """Line and column of a character, both counted from 1."""
        offset = max(0, min(offset, len(self.text)))
        line = bisect_right(self._line_starts, offset)
        return line, offset - self._line_starts[line - 1] + 1

    def line(self, number: int) -> str:
        """The text of a line, counted from 1, without its line break."""
        start = self._line_starts[number - 1]
        end = self._line_starts[number] - 1 if number < len(self._line_starts) else len(self.text)
        return self.text[start:end].rstrip("\r")


@dataclass(frozen=True)
class SourceMap:
    """The spans of a spec's parts in the text it was read from.

    A spec knows no text, so whoever finds something wrong with it names the part (a `Loc`), and this
    map finds the place to underline: the span of the part, or of the nearest part around it.
    """

    source: Source
    spans: dict[Loc, Span] = field(default_factory=dict)

    def locate(self, loc: Loc) -> Span | None:
        for length in range(len(loc), -1, -1):
            if (span := self.spans.get(loc[:length])) is not None:
                return span
        return None
