"""Locations in a text: sources, their spans, and the mapping from a spec's parts to spans."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import field
from functools import cached_property

from bishare_dsl.diagnostics.record import Record

Loc = tuple[str | int, ...]
"""A path into a spec in Pydantic's form: ``("shares", 1, "rank")``."""


class Span(Record):
    """Characters ``start`` (inclusive) to ``end`` (exclusive) of a text.

    If a text uses others, offsets continue from one text to the next, so a span identifies its text (see
    `Source.start`).
    """

    start: int
    end: int


class Source(Record):
    """A named text with line numbers. ``used`` is the span in another text that uses it."""

    name: str
    text: str
    start: int = 0
    used: Span | None = None

    @property
    def end(self) -> int:
        """The offset after the last character."""
        return self.start + len(self.text)

    @cached_property
    def _line_starts(self) -> list[int]:
        return [0, *(i + 1 for i, char in enumerate(self.text) if char == "\n")]

    def position(self, offset: int) -> tuple[int, int]:
        """Return the line and column of a character, both counted from 1."""
        offset = max(0, min(offset - self.start, len(self.text)))
        line = bisect_right(self._line_starts, offset)
        return line, offset - self._line_starts[line - 1] + 1

    def line(self, number: int) -> str:
        """Return the text of a line, counted from 1, without its line break."""
        start = self._line_starts[number - 1]
        end = self._line_starts[number] - 1 if number < len(self._line_starts) else len(self.text)
        return self.text[start:end].rstrip("\r")


class SourceMap(Record):
    """The spans of a spec's parts in its text.

    A spec does not contain its text, so a problem names a part (a `Loc`). This map returns the span to
    underline: of the part, or of its nearest enclosing part. ``used`` lists the texts that ``source`` uses
    directly or indirectly, in order of ``start``. ``outdented`` lists parts of shares indented like
    statements.
    """

    source: Source
    spans: dict[Loc, Span] = field(default_factory=dict)
    used: tuple[Source, ...] = ()
    outdented: tuple[Loc, ...] = ()

    def locate(self, loc: Loc) -> Span | None:
        enclosing = (loc[:length] for length in range(len(loc), -1, -1))
        return next((self.spans[part] for part in enclosing if part in self.spans), None)

    def source_of(self, span: Span) -> Source:
        """Return the text that contains a span."""
        texts = (self.source, *self.used)
        return texts[max(0, bisect_right(texts, span.start, key=lambda text: text.start) - 1)]

    def place(self, span: Span) -> str:
        """Format a location as ``file:line:column``."""
        source = self.source_of(span)
        line, column = source.position(span.start)
        return f"{source.name}:{line}:{column}"

    def uses(self, span: Span) -> list[Span]:
        """Return the span that uses the text of a span, the span that uses that text, and so on."""
        sources = []
        while (used := self.source_of(span).used) is not None:
            sources.append(used)
            span = used
        return sources
