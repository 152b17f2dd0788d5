"""Try advice before anybody reads it: no other module judges a remedy."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from bishare_dsl import spec as m
from bishare_dsl.diagnostics import BishareError, Edit, Problem, Remedy, Rewrite, SourceMap, Span
from bishare_dsl.diagnostics.codes import registry
from bishare_dsl.diagnostics.record import Record
from bishare_dsl.diagnostics.words import english
from bishare_dsl.language.grammar import STATEMENTS, lex
from bishare_dsl.language.read import survey
from bishare_dsl.language.slips import edit_between
from bishare_dsl.models.site import Architecture
from bishare_dsl.plan.build import build_plan
from bishare_dsl.plan.check import check_spec
from bishare_dsl.plan.plan import Plan
from bishare_dsl.plan.sharing import Sharing, asked, keeps, sharing

_LONGEST = 2**14
# A help line with one text to write in place of the wrong one.
_MEANT = re.compile(r"^[^`]*\b(?:did you mean|write|is|are|reads?|by) `([^`]+)`[^`]*$")
# A line that does not begin a statement.
_CONTINUES = re.compile(rf"(?!\s*(?:{'|'.join(STATEMENTS)})\b)\s|$|[)}}\]]")
_WORDS = ("NAME", "STRING", "INT", "FLOAT")
# How many characters to read in trials of a text, which takes about a second.
_MOST_CHARACTERS = 150_000
# How many equal mistakes of a line to mend one after the other.
_MOST_AGAIN = 16

Params = Mapping[str, int | float | str]


class Reading(Record):
    """What a text comes to: a spec, a plan if it fits the model, and problems with their places."""

    text: str
    where: SourceMap
    problems: Sequence[Problem]
    spec: m.Spec | None = None
    plan: Plan | None = None
    architecture: Architecture | None = None

    @cached_property
    def shared(self) -> Sharing:
        """What its plan shares; without a plan what its keys ask to share."""
        if self.plan is not None:
            return sharing(self.plan)
        if self.spec is None or self.architecture is None:
            return Sharing(0)
        return asked(self.spec, self.architecture)

    @property
    def words(self) -> int:
        """The number of words and numbers of the text, without its comments."""
        return sum(token.type in _WORDS or token.isalpha() for token in lex(self.text))

    def worth(self, before: Reading) -> tuple[int, Sharing]:
        """Rank texts that mend the same problem: the most of its words, then the most sharing."""
        return min(self.words, before.words), self.shared

    def lines(self, problem: Problem) -> range:
        """Return the lines of a problem; none without a place in this text."""
        span = problem.span or self.where.locate(problem.loc)
        if span is None or self.where.source_of(span) is not self.where.source:
            return range(0)
        first, last = (self.where.source.position(place)[0] for place in (span.start, span.end))
        return range(first, last + 1)


class Adviser(Record, frozen=False):
    """Judge the remedies of a text's problems, with the model at hand.

    Attributes:
        where: the text.
        architecture: the model, or None to judge what needs no model.
        params: values for params of the spec.
        allow_use: whether the text may use any file.
    """

    where: SourceMap
    architecture: Architecture | None = None
    params: Params | None = None
    allow_use: bool = False
    tried: int = 0

    def settled(self, problems: Iterable[Problem]) -> list[Problem]:
        """Return problems, each with the best of its remedies that survives, or without advice."""
        settled = [self._settled(problem) for problem in problems]
        if sum(bool(problem.edits) for problem in settled) > 1 and self.before.spec is None:
            settled = self._together(settled)
        return settled

    def _together(self, problems: list[Problem]) -> list[Problem]:
        """Drop the advice that fails in a text that follows all of it: names are looked up only there."""
        edits = [edit for problem in problems for edit in problem.edits]
        after = self.read(_written(self.where, edits) or "")
        if after.spec is None:
            return problems
        bad = {line for problem in after.problems for line in after.lines(problem)}
        return [
            replace(problem, help=registry()[problem.code].remedy, edits=())
            if problem.edits and not bad.isdisjoint(self.before.lines(problem))
            else problem
            for problem in problems
        ]

    def _settled(self, problem: Problem) -> Problem:
        remedies = self._remedies(problem)
        if not remedies:
            return problem
        # Prose may quote a text without advising it.
        if not problem.remedies and not problem.edits:
            new = _written(self.where, remedies[0].edits)
            if new is None or self.read(new).spec is None:
                return problem
        tried = [(made, remedy) for remedy in remedies if (made := self._survives(problem, remedy))]
        kept = problem.remedies or not (problem.edits or _MEANT.search(problem.help or ""))
        fallback = problem.help if kept else registry()[problem.code].remedy
        if not tried:
            return replace(problem, help=fallback, edits=(), remedies=())
        reading, best = max(tried, key=lambda one: (not one[1].also, one[0].worth(self.before)))
        edit = edit_between(self.where.source.text, reading.text, self.where.source.start)
        others = (one.help for _, one in tried if one.also and one is not best)
        help = ", or ".join([best.help, *others])
        return replace(problem, help=help, edits=(edit,), remedies=())

    def _remedies(self, problem: Problem) -> tuple[Remedy, ...]:
        """Return a problem's remedies, its edits, or the word that its help advises."""
        if problem.remedies or len(self.where.source.text) > _LONGEST:
            return problem.remedies
        if problem.edits:
            return (Remedy(problem.help or "", problem.edits),)
        meant = _MEANT.search(problem.help or "")
        span = problem.span or (self.where.locate(problem.loc) if problem.loc else None)
        if span is None or self.where.source_of(span) is not self.where.source:
            return ()
        start, text = self.where.source.start, self.where.source.text
        old = text[span.start - start : span.end - start]
        bare = old.strip('"')
        if meant is None and old == bare:
            return ()
        help = problem.help if meant and problem.help else f"write `{bare}` without quotes"
        new = meant[1] if meant else bare
        new = new.removeprefix("per " * text[: span.start - start].endswith("per "))
        new = f'"{new}"' if meant and old != bare and not new.startswith('"') else new
        return (Remedy(help, (Edit(span, new),)),)

    @cached_property
    def before(self) -> Reading:
        """The text as it is."""
        return self.read(self.where.source.text)

    def read(self, text: str) -> Reading:
        """Read and plan a text."""
        name = self.where.source.name
        found = survey(text, name, allow_use=self.allow_use)
        if found.spec is None:
            return Reading(text, found.where, found.problems)
        try:
            spec = found.spec.with_params(self.params or {})
            if self.architecture is None:
                return Reading(text, found.where, check_spec(spec), spec)
            plan, problems = build_plan(spec, self.architecture)
            return Reading(text, found.where, problems, spec, plan)
        except BishareError as error:
            shapes = self.architecture
            return Reading(text, found.where, error.problems, found.spec, None, shapes)

    def _survives(self, problem: Problem, remedy: Remedy) -> Reading | None:
        """Return what a remedy makes of the text, if it mends the problem and loses nothing."""
        new, before = _written(self.where, remedy.edits), self.before
        for _ in range(_MOST_AGAIN):
            if new in (None, before.text) or self.tried > _MOST_CHARACTERS or _spoils(before, new):
                return None
            self.tried += len(new)
            after = self.read(new)
            if self._mends(problem, remedy, after):
                return after
            same = self._again(problem, remedy, after)
            new = _written(after.where, same.edits) if same else None
        return None

    def _again(self, problem: Problem, remedy: Remedy, after: Reading) -> Remedy | None:
        """Return the remedy for the same mistake further along a statement, if a text has it."""
        for later in self._near(after) if remedy.kind else ():
            if (later.span, later.message) != (problem.span, problem.message):
                return next((one for one in later.remedies if one.kind == remedy.kind), None)
        return None

    def _near(self, after: Reading) -> list[Problem]:
        """Return the problems of a new text in statements that differ from the old one."""
        lines = _statement(after.text, _changed_lines(self.before.text, after.text))
        return [one for one in after.problems if not lines.isdisjoint(after.lines(one))]

    def _mends(self, problem: Problem, remedy: Remedy, after: Reading) -> bool:
        """Return whether a problem is gone, nothing new is wrong, and the rest is as it was asked for.

        After a guess nothing is wrong in the whole statement.
        """
        before = self.before
        old = Counter((one.code, one.message) for one in before.problems)
        new = Counter((one.code, one.message) for one in after.problems)
        changed = _changed_lines(before.text, after.text)
        near, key = self._near(after), (problem.code, problem.message)
        same = near if before.spec is None else after.problems
        if new[key] >= old[key] and key in [(one.code, one.message) for one in same]:
            return False
        if remedy.guess and any(one.severity == "error" for one in near):
            return False
        # A text that can be read has problems with its meaning, of which nothing was known before.
        revealed = before.spec is None and after.spec is not None
        for one in after.problems:
            if old[one.code, one.message] >= new[one.code, one.message]:
                continue
            other = one.severity == "error" and one.code not in {c for c, _ in old}
            if (other and not revealed) or not set(after.lines(one)).isdisjoint(changed):
                return False
        if after.plan is not None and before.spec is not None:
            return keeps(after.plan, before.spec, before.plan, before.shared)
        return before.spec is None or after.shared.fraction >= before.shared.fraction


def _written(where: SourceMap, edits: Iterable[Edit | Rewrite]) -> str | None:
    """Write edits into a text, or return None if one is not in it."""
    text = where.source.text
    placed: list[tuple[Span, str]] = []
    for edit in edits:
        span = edit.span if isinstance(edit, Edit) else where.spans.get(edit.loc)
        if span is None or where.source_of(span) is not where.source:
            return None
        placed.append((span, edit.text))
    for span, new in sorted(placed, key=lambda one: -one[0].start):
        start, end = span.start - where.source.start, span.end - where.source.start
        text = text[:start] + new.replace("{}", text[start:end]) + text[end:]
    return text


def _changed_lines(old: str, new: str) -> range:
    """Return the numbers of the lines of a new text that differ from an old one."""
    edit = edit_between(old, new, 0)
    first = new.count("\n", 0, edit.span.start) + 1
    return range(first, first + edit.text.count("\n") + 1)


def _statement(text: str, lines: range) -> set[int]:
    """Return the numbers of some lines, and of all lines of the statements that these are in."""
    texts = text.split("\n")
    first, last = lines.start, lines.stop
    while first > 1 and _CONTINUES.match(texts[first - 1]):
        first -= 1
    while last <= len(texts) and _CONTINUES.match(texts[last - 1]):
        last += 1
    return {*range(first, last)}


def _spoils(before: Reading, new: str) -> bool:
    """Return whether a new text takes a word of English, in a text without a meaning, for a name."""
    lines = {line.strip() for line in before.text.split("\n")}
    changed = [line for line in new.split("\n") if line.strip() not in lines]
    names = {token.lower() for line in changed for token in lex(line) if token.type == "NAME"}
    return before.spec is None and bool(names & english() - {*m.ATTRIBUTES, "none"})
