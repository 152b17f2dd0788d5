"""A spec in an editor, whose stages (tree, spec, plan, problems) are computed on demand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from lark import Token
from lsprotocol.types import PositionEncodingKind

from bishare_dsl.diagnostics import BishareError, Loc, Problem, Source, Span
from bishare_dsl.language.parse import plain_lines
from bishare_dsl.language.read import Survey, survey, warn_of_outdented
from bishare_dsl.language.syntax import Statement, Syntax, span_of
from bishare_dsl.language.use import File
from bishare_dsl.lsp.model import ChosenModel, NamedModel, named_model
from bishare_dsl.lsp.positions import Positions
from bishare_dsl.models.site import Architecture
from bishare_dsl.plan import Plan
from bishare_dsl.plan.advice import Adviser
from bishare_dsl.plan.check import check_spec
from bishare_dsl.plan.select import Sites
from bishare_dsl.spec import Spec


@dataclass
class Document:
    """A text with its path.

    ``chosen`` is the model of the settings, and ``unit`` the unit of columns.
    """

    text: str
    path: str
    chosen: ChosenModel = field(default_factory=ChosenModel)
    allow_use: bool = False
    unit: str = PositionEncodingKind.Utf16

    @cached_property
    def survey(self) -> Survey:
        """The text and the files it uses, as far as they can be read."""
        return survey(self.text, self.path, allow_use=self.allow_use)

    @cached_property
    def source(self) -> Source:
        """The text, without used files."""
        return Source(self.path, plain_lines(self.text))

    @property
    def file(self) -> File | None:
        """The tree, including the trees of used files."""
        return self.survey.file

    @property
    def syntax(self) -> Syntax | None:
        """The tree of the text alone."""
        return self.file.syntax if self.file else None

    @property
    def spec(self) -> Spec | None:
        """The spec, or None while the text has errors."""
        return self.survey.spec

    @cached_property
    def positions(self) -> Positions:
        """The lines and columns of the text."""
        return Positions(self.source, self.unit)

    @cached_property
    def named(self) -> NamedModel | None:
        """The model named in a comment, if any."""
        return named_model(self.source)

    @property
    def architecture(self) -> Architecture | None:
        """The model to check the spec against."""
        return self.chosen.architecture if self.named is None else self.named.architecture

    @cached_property
    def _checked(self) -> tuple[Plan | None, tuple[Problem, ...]]:
        spec, where, architecture = self.spec, self.survey.where, self.architecture
        judge = Adviser(where, architecture, allow_use=self.allow_use)
        if spec is None:
            return None, tuple(judge.settled(self.survey.problems))
        if architecture is None:
            return None, (*warn_of_outdented(spec, where), *judge.settled(check_spec(spec)))
        from bishare_dsl.compiler import make_plan

        try:
            resolved = make_plan(spec, architecture, where=where)
        except BishareError as error:
            return None, (*warn_of_outdented(spec, where), *error.problems)
        return resolved.plan, resolved.problems

    @property
    def plan(self) -> Plan | None:
        """The plan of the spec, or None without a model or if the spec does not fit it."""
        return self._checked[0]

    @property
    def problems(self) -> tuple[Problem, ...]:
        """All problems of the text, its meaning, and its fit to the model."""
        wrong_model = self.named.problem if self.named else None
        return (*((wrong_model,) if wrong_model else ()), *self._checked[1])

    def place(self, problem: Problem) -> Span:
        """Return the span of a problem, in the text or in a used file."""
        span = problem.span or self.survey.where.locate(problem.loc)
        return span or Span(self.source.start, self.source.start)

    @cached_property
    def sites(self) -> Sites | None:
        """The model's sites with the spec's names, or None without a spec or a model."""
        if self.spec is None or self.architecture is None:
            return None
        return Sites(self.spec, self.architecture)

    def is_own(self, span: Span) -> bool:
        """Return whether a span belongs to the text and not to a used file."""
        return self.survey.where.source_of(span) is self.survey.where.source

    def token_at(self, offset: int) -> Token | None:
        """Return the token that contains a character or ends there."""
        nearest = None
        for token in self.syntax.tokens if self.syntax else ():
            span = span_of(token)
            if token.type == "SPACE" or not span.start <= offset <= span.end:
                continue
            if span.start < span.end:
                nearest = token if offset < span.end or nearest is None else nearest
        return nearest

    def statement_at(self, offset: int) -> tuple[Statement, Statement] | None:
        """Return the statement at a character and its clause there, or the statement twice."""
        for statement in self.syntax.statements if self.syntax else ():
            if statement.start <= offset <= statement.end:
                within = (c for c in statement.clauses if c.start <= offset <= c.end)
                return statement, next(within, statement)
        return None

    def parts_at(self, offset: int) -> Iterator[tuple[Loc, Span]]:
        """Yield the parts of the spec that contain a character, the smallest first."""
        containing = [
            (span.end - span.start, -len(loc), loc, span)
            for loc, span in self.survey.where.spans.items()
            if span.start <= offset <= span.end
        ]
        for _, _, loc, span in sorted(containing, key=lambda part: part[:2]):
            yield loc, span
