"""Try remedies before anybody reads them.

The first remedy after which the text has fewer errors is shown, with its edits. A remedy without edits
cannot be tried, and is shown if none before it helps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from bishare_dsl import spec as m
from bishare_dsl.advice.question import Question, Remedy, SpecOnModel
from bishare_dsl.advice.remedies import remedies_for
from bishare_dsl.diagnostics import BishareError, Edit, Problem, SourceMap
from bishare_dsl.diagnostics.record import Record
from bishare_dsl.language.read import survey
from bishare_dsl.models.site import Architecture
from bishare_dsl.plan.build import build_plan
from bishare_dsl.plan.check import check_spec

MOST_TRIALS = 64
"""How many edited texts are read for the problems of one text."""
LONGEST = 2**14
"""The longest text, in characters, for which remedies are tried."""


class Score(Record):
    """How many errors and how many problems a text has. ``readable`` says whether it is a spec at all."""

    errors: int
    problems: int
    readable: bool


class Trials(Record, frozen=False):
    """Read texts in place of a given one, with the same model and params.

    Attributes:
        where: the text.
        architecture: the model, or None to find what is wrong without one.
        params: values for params of the spec.
        allow_use: whether the text may use any file.
        left: how many texts may still be read.
    """

    where: SourceMap
    architecture: Architecture | None
    params: m.Params
    allow_use: bool
    left: int = MOST_TRIALS

    def score(self, text: str) -> Score:
        """Count the problems of a text."""
        problems, readable = self._problems(text)
        errors = sum(problem.severity == "error" for problem in problems)
        return Score(errors, len(problems), readable)

    def _problems(self, text: str) -> tuple[Sequence[Problem], bool]:
        result = survey(text, self.where.source.name, allow_use=self.allow_use)
        if result.spec is None:
            return result.problems, False
        try:
            spec = result.spec.with_params(self.params)
            if self.architecture is None:
                return check_spec(spec), True
            return build_plan(spec, self.architecture)[1], True
        except BishareError as error:
            return error.problems, True

    def helps(self, problem: Problem, remedy: Remedy, before: Score) -> bool:
        """Return whether the text has fewer errors, or fewer warnings, after a remedy."""
        text = edited(self.where, remedy.edits)
        if text is None or text == self.where.source.text:
            return False
        self.left -= 1
        after = self.score(text)
        if problem.severity == "error":
            return after.errors < before.errors
        return after.errors <= before.errors and after.problems < before.problems


def advise(
    problems: Iterable[Problem],
    where: SourceMap | None = None,
    architecture: Architecture | None = None,
    params: m.Params | None = None,
    *,
    spec: m.Spec | None = None,
    allow_use: bool = False,
) -> list[Problem]:
    """Return problems with help and edits in place of their facts.

    Args:
        problems: the problems of one text or spec.
        where: the text, or None if the spec was built in Python; then nothing can be tried.
        architecture: the model, or None to try what needs none.
        params: values for params of the spec.
        spec: the spec, or None if the text cannot be read.
        allow_use: whether the text may use any file.
    """
    problems = list(problems)
    if all(problem.fact is None for problem in problems):
        return problems
    trials = None
    before = None
    if where is not None and len(where.source.text) <= LONGEST:
        trials = Trials(where, architecture, params or {}, allow_use)
        before = trials.score(where.source.text)
    subject = SpecOnModel(spec, architecture)
    advised = []
    for i, problem in enumerate(problems):
        if problem.fact is None:
            advised.append(problem)
            continue
        question = Question(problem, where, subject)
        remedies = remedies_for(question)
        if trials is None or before is None:
            remedy = next(iter(remedies), None)
            edits_hold = False
        else:
            most = trials.left // (len(problems) - i)
            remedy = _first_helpful(trials, problem, remedies, before, max(most, 1))
            edits_hold = True
        advised.append(_with_remedy(problem, remedy, edits_hold))
    return advised


def _first_helpful(
    trials: Trials, problem: Problem, remedies: Iterable[Remedy], before: Score, most: int
) -> Remedy | None:
    """Return the first remedy that helps, or that has no edits, after at most some trials."""
    stop = max(trials.left - most, 0)
    for remedy in remedies:
        if not remedy.edits:
            return remedy
        if trials.left > stop and trials.helps(problem, remedy, before):
            return remedy
    return None


def _with_remedy(problem: Problem, remedy: Remedy | None, edits_hold: bool) -> Problem:
    """Return a problem without its fact, and with the help and edits of a remedy."""
    if remedy is None:
        return replace(problem, fact=None)
    edits = remedy.edits if edits_hold else ()
    return replace(problem, fact=None, help=remedy.help, edits=edits)


def edited(where: SourceMap, edits: Iterable[Edit]) -> str | None:
    """Return the text after edits, or None if one is not in it."""
    source = where.source
    text = source.text
    for edit in sorted(edits, key=lambda edit: -edit.span.start):
        if where.source_of(edit.span) is not source:
            return None
        start = edit.span.start - source.start
        end = edit.span.end - source.start
        text = text[:start] + edit.text + text[end:]
    return text
