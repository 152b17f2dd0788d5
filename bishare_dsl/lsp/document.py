"""A spec in an editor, whose stages are computed on demand."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from lsprotocol.types import PositionEncodingKind

from bishare_dsl.advice import advise
from bishare_dsl.diagnostics import BishareError, Problem, Source, Span
from bishare_dsl.language.parse import plain_lines
from bishare_dsl.language.read import Survey, survey, warn_of_outdented
from bishare_dsl.lsp.model import ChosenModel, NamedModel, named_model
from bishare_dsl.lsp.positions import Positions
from bishare_dsl.models.site import Architecture
from bishare_dsl.plan.check import check_spec


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
    def problems(self) -> tuple[Problem, ...]:
        """All problems of the text, its meaning, and its fit to the model."""
        problems = self._spec_problems()
        if self.named is None or self.named.problem is None:
            return problems
        return (self.named.problem, *problems)

    def _spec_problems(self) -> tuple[Problem, ...]:
        spec = self.survey.spec
        where = self.survey.where
        if spec is None:
            problems = self.survey.problems
            return tuple(advise(problems, where, self.architecture, allow_use=self.allow_use))
        if self.architecture is None:
            checked = [*warn_of_outdented(spec, where), *check_spec(spec)]
            return tuple(advise(checked, where, spec=spec, allow_use=self.allow_use))
        from bishare_dsl.compiler import make_plan

        try:
            return make_plan(spec, self.architecture, where=where).problems
        except BishareError as error:
            return (*warn_of_outdented(spec, where), *error.problems)

    def place(self, problem: Problem) -> Span:
        """Return the span of a problem, in the text or in a used file."""
        span = problem.span or self.survey.where.locate(problem.loc)
        return span or Span(self.source.start, self.source.start)

    def is_own(self, span: Span) -> bool:
        """Return whether a span belongs to the text and not to a used file."""
        return self.survey.where.source_of(span) is self.survey.where.source
