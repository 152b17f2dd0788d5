"""Where in a text something stands: a source, a span of it, and the way from a spec's part to its span."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property

Loc = tuple[str | int, ...]
"""A path into a spec, as Pydantic writes it: ``("shares", 1, "rank")``."""


@dataclass(frozen=True, slots=True)
class Span:
    """Characters ``start`` (inclusive) to ``end`` (exclusive) of a text.

    Where a text uses others, the characters of all of them are counted through, one text after the
    other: a span tells its text by where that begins (`Source.start`).
    """

    start: int
    end: int


@dataclass(frozen=True)
class Source:
    """A named text; knows its lines. ``used`` is where another text uses it."""

    name: str
    text: str
    start: int = 0
    used: Span | None = None

    @property
    def end(self) -> int:
        """After the last character."""
        return self.start + len(self.text)

    @cached_property
    def _line_starts(self) -> list[int]:
        return [0, *(i + 1 for i, char in enumerate(self.text) if char == "\n")]

    def position(self, offset: int) -> tuple[int, int]:
        """Find the line and column of a character, both counted from 1."""
        offset = max(0, min(offset - self.start, len(self.text)))
        line = bisect_right(self._line_starts, offset)
        return line, offset - self._line_starts[line - 1] + 1

    def line(self, number: int) -> str:
        """Return the text of a line, counted from 1, without its line break."""
        start = self._line_starts[number - 1]
        end = self._line_starts[number] - 1 if number < len(self._line_starts) else len(self.text)
        return self.text[start:end].rstrip("\r")


@dataclass(frozen=True)
class SourceMap:
    """The spans of a spec's parts in the text it was read from.

    A spec knows no text, so whoever finds something wrong with it names the part (a `Loc`), and this
    map finds the place to underline: the span of the part, or of the nearest part around it.
    ``used`` are the texts that ``source`` uses, themselves or through others, by their ``start``;
    ``outdented`` the parts of shares that stand where a statement would.
    """

    source: Source
    spans: dict[Loc, Span] = field(default_factory=dict)
    used: tuple[Source, ...] = ()
    outdented: tuple[Loc, ...] = ()

    def locate(self, loc: Loc) -> Span | None:
        for length in range(len(loc), -1, -1):
            if (span := self.spans.get(loc[:length])) is not None:
                return span
        return None

    def source_of(self, span: Span) -> Source:
        """Find the text that a span is of."""
        texts = (self.source, *self.used)
        return texts[max(0, bisect_right(texts, span.start, key=lambda text: text.start) - 1)]

    def place(self, span: Span) -> str:
        """Write a place as ``file:line:column``."""
        source = self.source_of(span)
        line, column = source.position(span.start)
        return f"{source.name}:{line}:{column}"

    def uses(self, span: Span) -> list[Span]:
        """Find where the text of a span is used, where the text with that use is, and so on up."""
        found = []
        while (used := self.source_of(span).used) is not None:
            found.append(used)
            span = used
        return found
