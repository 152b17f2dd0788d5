"""Offer the advice of a message as a code action, if it removes the message."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from lsprotocol import types as lsp

from bishare_dsl.diagnostics import Edit, Problem, Source, Span
from bishare_dsl.diagnostics.codes import language, spec
from bishare_dsl.language.grammar import CLAUSES, END
from bishare_dsl.language.parse import parse_open
from bishare_dsl.language.syntax import Statement, span_of, unquoted
from bishare_dsl.language.text import spelled_name
from bishare_dsl.lsp.diagnose import diagnostic
from bishare_dsl.lsp.document import Document
from bishare_dsl.lsp.positions import apply_edits

_MEANT = re.compile(r"did you mean `([^`]+)`\?")
_IN_CODE = re.compile(r"`([^`]+)`")
_NEEDLESS = {code.code for code in (spec.UNUSED, language.TWICE)}

Remedy = tuple[str, tuple[Edit, ...]]
"""A title, and the edits."""


def code_actions(document: Document, uri: str, wanted: lsp.Range) -> list[lsp.CodeAction]:
    """Return code actions for the problems in a range."""
    converter = document.positions
    actions = []
    for problem in document.problems:
        span = document.place(problem)
        where = converter.range(span)
        if not document.is_own(span) or where.start > wanted.end or where.end < wanted.start:
            continue
        offered = [
            remedy
            for remedy in dict.fromkeys(_remedies(document, problem))
            if _mends(document, problem, remedy)
        ]
        for title, edits in offered:
            changes = [lsp.TextEdit(converter.range(edit.span), edit.text) for edit in edits]
            action = lsp.CodeAction(
                title=title,
                kind=lsp.CodeActionKind.QuickFix,
                diagnostics=[diagnostic(document, problem)],
                edit=lsp.WorkspaceEdit(changes={uri: changes}),
                is_preferred=len(offered) == 1,
            )
            actions.append(action)
    return actions


def _mends(document: Document, problem: Problem, remedy: Remedy) -> bool:
    """Return whether a remedy removes a problem without adding others."""
    after = replace(document, text=apply_edits(document.source, remedy[1]))
    if _is_of_text(problem):
        before, left = document.survey.problems, after.survey.problems
    else:
        before, left = document.problems, after.problems
    counts, still = (Counter((p.code, p.message) for p in some) for some in (before, left))
    one = problem.code, problem.message
    return still[one] < counts[one] and sum(map(_is_of_text, left)) <= sum(map(_is_of_text, before))


def _is_of_text(problem: Problem) -> bool:
    return problem.code.startswith("BS1")


def _remedies(document: Document, problem: Problem) -> Iterator[Remedy]:
    """Yield possible remedies, which `_mends` filters later."""
    span, help_line = document.place(problem), problem.help or ""
    if problem.edits:
        yield _title(problem), problem.edits
    elif meant := _MEANT.search(help_line):
        for wrong in _words_in(document, span):
            yield f"Write `{meant[1]}`", (Edit(wrong, _spelled_as(document, wrong, meant[1])),)
    elif (at_start := document.statement_at(span.start)) is not None:
        yield from _clauses(help_line, *at_start)
        if problem.code in _NEEDLESS and not _is_listed(document, span, at_start[1]):
            yield "Leave it out", (Edit(_with_space(document, at_start[1].span), ""),)
        if problem.code == spec.OUTDENTED.code:
            yield "Indent it", (Edit(Span(at_start[1].start, at_start[1].start), "    "),)


def _title(problem: Problem) -> str:
    """Return a title for the edits of a problem."""
    if problem.help:
        return problem.help[:1].upper() + problem.help[1:]
    written = " ".join("".join(edit.text for edit in problem.edits).split())
    return f"Write `{written}`" if written else "Leave it out"


def _words_in(document: Document, span: Span) -> Iterator[Span]:
    """Yield the spans of names inside a span, from last to first."""
    tokens = document.syntax.tokens if document.syntax else []
    for token in reversed(tokens):
        word = span_of(token)
        named = token.type in ("SPACE", "COMMENT", END)
        if not named and span.start <= word.start and word.end <= max(span.end, span.start + 1):
            yield word
    if document.named and document.named.span == span:
        yield span


def _spelled_as(document: Document, wrong: Span, meant: str) -> str:
    """Write the intended name in quotes if the wrong name has quotes."""
    start = wrong.start - document.source.start
    if document.source.text[start] == '"':
        return f'"{meant}"'
    plain = document.named is not None and document.named.span == wrong
    return meant if plain or not meant.isidentifier() or meant in CLAUSES else spelled_name(meant)


def _clauses(help_line: str, statement: Statement, clause: Statement) -> Iterator[Remedy]:
    """Yield remedies that insert the clauses of the help into the share, replacing equal clauses."""
    for text in _IN_CODE.findall(help_line) if statement.keyword == "share" else ():
        parsed = parse_open(Source("", f"share s {text}"))
        if END not in parsed.allowed or not parsed.words:
            continue
        word, *rest = map(unquoted, parsed.words)
        keyword, role = ("per", word) if rest[:1] == ["per"] else (word, None)
        if keyword not in CLAUSES:
            continue
        same = (c for c in statement.clauses if (c.keyword, c.role) == (keyword, role))
        has = next(same, None)
        span = has.span if has else Span(statement.end, statement.end)
        yield f"Write `{text}`", (Edit(span, text if has else f"  {text}"),)


def _is_listed(document: Document, span: Span, clause: Statement) -> bool:
    """Return whether a span is an item of a clause's list, without which the clause still means something."""
    text, first = document.source.text, document.source.start
    before = text[clause.start - first : span.start - first]
    after = text[span.end - first : clause.span.end - first]
    return "," in before or after.lstrip().startswith((",", ")"))


def _with_space(document: Document, span: Span) -> Span:
    """Extend a span by the white space before it, or to its whole line if it fills the line."""
    text, first = document.source.text, document.source.start
    start, end = span.start - first, span.end - first
    while start and text[start - 1] in " \t":
        start -= 1
    if (not start or text[start - 1] == "\n") and text[end : end + 1] == "\n":
        end += 1
    return Span(first + start, first + end)
