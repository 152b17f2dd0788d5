"""What is known of a problem when a remedy for it is sought: the fact, the text, the spec and the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

from bishare_dsl import spec as m
from bishare_dsl.diagnostics import Edit, Loc, Problem, SourceMap, Span
from bishare_dsl.diagnostics.record import Record
from bishare_dsl.models.site import Architecture
from bishare_dsl.plan.select import Sites
from bishare_dsl.spec.evaluate import in_key


class Remedy(Record):
    """What to do about a problem: a sentence, and the edits that do it.

    A remedy with edits is tried before it is shown. One without edits is shown as it is.
    """

    help: str
    edits: tuple[Edit, ...] = ()


class SpecOnModel(Record):
    """A spec and a model, whose sites are computed once for all problems.

    Attributes:
        spec: the spec, or None if the text cannot be read.
        architecture: the model, or None without one.
    """

    spec: m.Spec | None = None
    architecture: Architecture | None = None

    @cached_property
    def sites(self) -> Sites | None:
        """The model's sites with the names of the spec."""
        if self.spec is None or self.architecture is None:
            return None
        return Sites(self.spec, self.architecture)


class Question(Record):
    """A problem, and what surrounds it.

    Attributes:
        problem: the problem.
        where: the text, or None if the spec was built in Python.
        subject: the spec and the model.
    """

    problem: Problem
    where: SourceMap | None
    subject: SpecOnModel

    @property
    def spec(self) -> m.Spec | None:
        """The spec, or None if the text cannot be read."""
        return self.subject.spec

    @property
    def architecture(self) -> Architecture | None:
        """The model, or None without one."""
        return self.subject.architecture

    @property
    def sites(self) -> Sites | None:
        """The model's sites with the names of the spec."""
        return self.subject.sites

    @property
    def loc(self) -> Loc:
        """The location of the problem in the spec."""
        return self.problem.loc

    @property
    def in_key(self) -> bool:
        """Whether the problem is in a key."""
        return in_key(self.loc)

    @cached_property
    def span(self) -> Span | None:
        """The span of exactly the faulty part, or None if it has none in this text."""
        return self.problem.span or self.span_of(self.loc)

    @cached_property
    def written(self) -> str:
        """The text of the faulty part; empty if it has none."""
        return self.text_of(self.span) if self.span is not None else ""

    def span_of(self, loc: Loc) -> Span | None:
        """Return the span of a part of the spec in this text."""
        return None if self.where is None else self.where.spans.get(loc)

    def text_of(self, span: Span) -> str:
        """Return the text of a span; empty if it is in a used file."""
        if self.where is None or self.where.source_of(span) is not self.where.source:
            return ""
        start = self.where.source.start
        return self.where.source.text[span.start - start : span.end - start]

    def instead(self, text: str, help: str | None = None) -> Remedy:
        """Return the remedy that writes a text in place of the faulty part, in quotes if that has them."""
        help = help or f"did you mean `{text}`?"
        if self.span is None or not self.written:
            return Remedy(help)
        quoted = self.written.startswith('"') and not text.startswith('"')
        return Remedy(help, (Edit(self.span, f'"{text}"' if quoted else text),))

    def exactly(self, text: str, help: str) -> Remedy:
        """Return the remedy that writes a text in place of the faulty part as it stands."""
        if self.span is None or not self.written:
            return Remedy(help)
        return Remedy(help, (Edit(self.span, text),))

    def rewritten(self, loc: Loc, text: str, help: str) -> Remedy:
        """Return the remedy that writes a text in place of a part of the spec, ``{}`` for the old text."""
        return self.rewrites({loc: text}, help)

    def rewrites(self, texts: Mapping[Loc, str], help: str) -> Remedy:
        """Return the remedy that rewrites several parts of the spec, see `rewritten`."""
        edits = []
        for loc, text in texts.items():
            span = self.span_of(loc)
            if span is None:
                return Remedy(help)
            edits.append(Edit(span, text.replace("{}", self.text_of(span))))
        return Remedy(help, tuple(edits))


def listed(names: Iterable[str], last: str = ", ") -> str:
    """List names for a sentence."""
    return last.join(f"`{name}`" for name in names)
