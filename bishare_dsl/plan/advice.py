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
# A help line with several names, each of which is tried.
_LISTED = re.compile(r"(did you mean|valid here:) (`[^`]+`(?:(?:,| or) `[^`]+`)+)")
_NAME = re.compile(r'"?\w[\w.-]*"?')
# Corrections by a sign or a small word, which are not trusted while the rest of the text cannot be read.
_SIGNS = re.compile(r"(?:sign|comma|swap|close|english|missing)\b")
# A line that does not begin a statement.
_CONTINUES = re.compile(rf"(?!\s*(?:{'|'.join(STATEMENTS)})\b)\s|$|[)}}\]]")
_WORDS = ("NAME", "STRING", "INT", "FLOAT")
# How many characters to read in trials of a text, which takes about a second.
_MOST_CHARACTERS, _MOST_LISTED = 150_000, 75_000
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
        settled = [self._settled(self._with_names(problem)) for problem in problems]
        if sum(bool(problem.edits) for problem in settled) > 1 or any(p.remedies for p in settled):
            settled = self._together(settled)
        return [replace(problem, remedies=()) for problem in settled]

    def _together(self, problems: list[Problem]) -> list[Problem]:
        """Drop the advice that fails in a text that follows all of it, and what nothing could test."""
        edits = dict.fromkeys(edit for problem in problems for edit in problem.edits)
        after, before = self.read(_written(self.where, edits) or ""), self.before
        known = {(one.code, one.message) for one in before.problems}
        new = [one for one in after.problems if (one.code, one.message) not in known]
        bad = {line for one in new if after.spec or before.spec for line in after.lines(one)}
        return [
            replace(problem, help=registry()[problem.code].remedy, edits=())
            if (problem.remedies and after.spec is None)
            or (problem.edits and not bad.isdisjoint(before.lines(problem)))
            else problem
            for problem in problems
        ]

    def _with_names(self, problem: Problem) -> Problem:
        """Return a problem whose help lists names, with those alone that can stand in its place."""
        listed, place = _LISTED.match(problem.help or ""), self._place(problem)
        if not listed or not place or not _NAME.fullmatch(place[2]) or self.tried > _MOST_LISTED:
            return problem
        errors = [one for one in self.before.problems if one.severity == "error"]
        # Of several mistakes one may hide what a name would mend.
        names = re.findall("`([^`]+)`", listed[2]) if len(errors) == 1 else ()
        fit = [f"`{name}`" for name in names if self._survives(problem, _instead(place, "", name))]
        left = f"{listed[1]} {(', ' if ',' in listed[2] else ' or ').join(fit)}"
        left = left if fit else f"there are {listed[2]}"  # That is a fact, and no advice.
        return replace(problem, help=left + listed.string[listed.end() :])

    def _settled(self, problem: Problem) -> Problem:
        remedies = self._remedies(problem)
        if not remedies:
            return problem
        # Prose may quote a text without advising it.
        if not (problem.remedies or problem.edits or (problem.help or "").startswith("did you")):
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
        # Of keys that share alike, the first is said.
        said = {reading.shared: best.help}
        for made, one in tried:
            if one.also:
                said.setdefault(made.shared, one.help)
        help = ", or ".join(said.values())
        untested = (best,) if reading.spec is None and _SIGNS.match(best.kind) else ()
        return replace(problem, help=help, edits=(edit,), remedies=untested)

    def _place(self, problem: Problem) -> tuple[Span, str, str] | None:
        """Return the place of a problem in the text, the words before it in their line, and its own."""
        span = problem.span or (self.where.locate(problem.loc) if problem.loc else None)
        if span is None or self.where.source_of(span) is not self.where.source:
            return None
        start, text = self.where.source.start, self.where.source.text
        before, old = text[: span.start - start], text[span.start - start : span.end - start]
        return span, before.rpartition("\n")[2], old

    def _remedies(self, problem: Problem) -> tuple[Remedy, ...]:
        """Return a problem's remedies, its edits, or the word that its help advises."""
        if problem.remedies or len(self.where.source.text) > _LONGEST:
            return problem.remedies
        if problem.edits:
            return (Remedy(problem.help or "", problem.edits),)
        meant, place = _MEANT.search(problem.help or ""), self._place(problem)
        if place and meant:
            return (_instead(place, problem.help or "", meant[1]),)
        if place is None or place[2] == (bare := place[2].strip('"')):
            return ()
        return (Remedy(f"write `{bare}` without quotes", (Edit(place[0], bare),)),)

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


def _instead(place: tuple[Span, str, str], help: str, new: str) -> Remedy:
    """Return the remedy that writes something else in a place, in quotes if the old text has them."""
    span, before, old = place
    new = new.removeprefix("per " * before.endswith("per "))
    quoted = old.startswith('"') and not new.startswith('"')
    return Remedy(help, (Edit(span, f'"{new}"' if quoted else new),))


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
