"""Advice followed to the letter, as somebody would who takes each message at its word."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator

from bishare_dsl.compiler import make_plan
from bishare_dsl.diagnostics import BishareError, Edit, Problem, SourceMap, Span
from bishare_dsl.language import read
from bishare_dsl.language.grammar import CLAUSES
from bishare_dsl.models.presets import preset

_CODE = re.compile(r"`([^`]+)`")
_CLAUSES = "|".join(CLAUSES)


def problems_of(text: str, name: str, model: str) -> tuple[tuple[Problem, ...], SourceMap | None]:
    """Return the errors of a text, and where they stand."""
    where = None
    try:
        spec, where = read(text, name)
        make_plan(spec, preset(model), where=where)
    except BishareError as error:
        found = tuple(problem for problem in error.problems if problem.severity == "error")
        return found, error.where or where
    return (), where


def written(text: str, edits: Iterable[Edit]) -> str:
    """Write edits into a text; of those that overlap, the first."""
    last = len(text) + 1
    for edit in sorted(edits, key=lambda edit: -edit.span.start):
        if edit.span.end <= last:
            text = text[: edit.span.start] + edit.text + text[edit.span.end :]
            last = edit.span.start
    return text


def followed(text: str, problem: Problem, where: SourceMap) -> Iterator[str]:
    """Yield the texts that somebody may write who reads an answer: its edits, or what stands in its help, in
    place of what is underlined, of the clause it is in, or of its line; or what is underlined left out."""
    if problem.edits:
        yield written(text, problem.edits)
    span = problem.span or where.locate(problem.loc)
    if span is None or where.source_of(span) is not where.source:
        return
    line = Span(text.rfind("\n", 0, span.start) + 1, (text + "\n").find("\n", span.start))
    for code in _CODE.findall(problem.help or ""):
        keyword = code.split()[0]
        yield text[: span.start] + code + text[span.end :]
        if keyword == "spec":
            yield code
        clause = rf"\b{re.escape(keyword)}\b[^\n]*?(?=  |$| (?:{_CLAUSES})\b)"
        own = text[line.start : line.end]
        yield (
            text[: line.start]
            + re.sub(clause, lambda _, code=code: code, own, count=1)
            + text[line.end :]
        )
        yield text[: line.start] + code + text[line.end :]
        yield text[: line.end] + f"  {code}" + text[line.end :]
        yield text[: line.end] + f"\n{code}" + text[line.end :]
        yield text[: line.start] + f"{code}\n" + text[line.start :]
    if re.search(r"\bleave .*\bout\b", problem.help or ""):
        yield text[: span.start] + text[span.end :]
        yield text[: line.start] + text[line.end :]
        for word in _CODE.findall(problem.help or ""):
            own = text[line.start : line.end]
            yield text[: line.start] + own.replace(word, "", 1) + text[line.end :]


def ends_right(text: str, name: str, model: str, rounds: int = 8) -> str | None:
    """Follow the answers to a text, the first one first; return the spec that checks, or None."""
    for _ in range(rounds):
        problems, where = problems_of(text, name, model)
        if not problems:
            return text
        if where is None:
            return None
        first = problems[0]
        before = Counter((one.code, one.message) for one in problems)
        key = (first.code, first.message)
        best = None
        for after in followed(text, first, where):
            left, _ = problems_of(after, name, model)
            if not left:
                return after
            still = sum((one.code, one.message) == key for one in left)
            if still < before[key] and len(left) <= len(problems):
                best = best or after
        if best is None or best == text:
            return None
        text = best
    return None
