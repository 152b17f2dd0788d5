"""What is wrong with a file as a whole although each statement can be read: missing, twice, too late."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import cast

from lark import Token

from bishare_dsl.diagnostics import Problem, Source, nearest
from bishare_dsl.diagnostics.codes import language as codes
from bishare_dsl.language.grammar import DEFAULTS
from bishare_dsl.language.parse import Problems, parse
from bishare_dsl.language.syntax import Statement, Syntax, span_of, unquoted
from bishare_dsl.spec.expression import FUNCTIONS, arity_problem

_WORDS = {"A": "A per", "B": "B per", "start": "start nonzero"}
_FACTORS = "a share says `A per layer  B per module`, say, or one key for both: `per layer`"
_ADVICE = {
    "per": "`per module` shares nothing, `per layer` within a layer, `per model` everything",
    "A per": _FACTORS,
    "B per": _FACTORS,
    "rank": "such as `rank 8`",
}


def parse_and_check(source: Source, problems: Problems) -> Syntax:
    """Make the tree of a text; what is wrong with it, as far as that shows without other texts, goes to
    ``problems``."""
    syntax = parse(source, problems)
    broken = [problem.span.start for problem in problems.kept if problem.span]
    if not problems.full:
        for problem in _check_structure(syntax, broken):
            problems(problem)
    return syntax


def _check_structure(syntax: Syntax, broken: Iterable[int]) -> Iterator[Problem]:
    """Find what is wrong with a tree; nothing is missed where reading failed, at the places ``broken``."""
    broken = sorted(broken)
    statements = syntax.statements
    header = syntax.header
    if not _written("SPEC", syntax) or (statements and header and header is not statements[0]):
        yield codes.NO_HEADER(span=syntax.first)

    use_may_stand = default_may_stand = True
    given: set[str] = set()
    for i, statement in enumerate(statements):
        word = statement.keyword
        if word in DEFAULTS:
            if not default_may_stand:
                yield codes.LATE_DEFAULT(
                    span=statement.keyword_span,
                    word=word,
                    help=f"move `{word}` above the first share, or to the share that it is meant for",
                )
            elif word in given:
                yield codes.TWICE(span=statement.span, what=f"the default `{word}`")
            yield from _twice_within(statement)
            given.add(word)
        elif word in ("spec", "target"):
            if word in given:
                yield codes.TWICE(span=statement.keyword_span, what=f"`{word}`")
            given.add(word)
        elif word == "use":
            if not use_may_stand:
                yield codes.LATE_USE(span=statement.span)
            if (use := f"`use {statement.name}`") in given:
                yield codes.TWICE(span=statement.span, what=use)
            given.add(use)
        elif word == "share":
            default_may_stand = False
            end = statements[i + 1].start if i + 1 < len(statements) else syntax.end + 1
            whole = not any(statement.start <= place < end for place in broken)
            yield from _check_share(statement, whole)
        use_may_stand = use_may_stand and word in ("spec", "use")
        yield from _check_calls(statement)
    yield from _check_order(statements)


def check_complete(syntax: Syntax) -> Iterator[Problem]:
    """Find what a spec lacks although it uses no other file: a file to be used may lack it."""
    header = syntax.header
    name, place = (header.name, header.span) if header else ("?", syntax.first)
    if not _written("TARGET", syntax):
        yield codes.NO_TARGET(span=place, spec=name)
    if not _written("SHARE", syntax):
        yield codes.NO_SHARE(span=place, spec=name)


def _written(kind: str, syntax: Syntax) -> bool:
    """Tell whether a word stands anywhere, be it where it cannot be read."""
    return any(token.type == kind for token in syntax.tokens)


def _check_share(share: Statement, whole: bool) -> Iterator[Problem]:
    name = share.name
    given: set[str] = set()
    for clause in share.clauses:
        word = _WORDS.get(clause.keyword, clause.keyword)
        if word in given:
            yield codes.TWICE(span=clause.span, what=f"`{word}` of share `{name}`")
        given.add(word)
        yield from _twice_within(clause)
    factors = {"A per", "B per"} & given
    if factors and "per" in given:
        key = next(clause for clause in share.clauses if clause.keyword == "per")
        yield codes.MIXED_KEYS(span=key.span, share=name)
    needed = ["A per", "B per", "rank"] if factors else ["per", "rank"]
    for word in needed if whole else ():
        if word in given or (word != "rank" and "per" in given):
            continue
        yield codes.NO_CLAUSE(span=share.head, share=name, clause=word, help=_ADVICE[word])


def _twice_within(clause: Statement) -> Iterator[Problem]:
    parts = clause.words.children
    what = f"the {clause.keyword} of"
    if clause.keyword == "via":
        what, parts = "option", parts[1:]
    elif clause.keyword not in ("init", "gain", "freeze"):
        return
    given: set[str] = set()
    for part in parts:
        name = unquoted(part if isinstance(part, Token) else cast(Token, part.children[0]))
        if name in given:
            yield codes.TWICE(span=span_of(part), what=f"{what} `{name}`")
        given.add(name)


def _check_calls(statement: Statement) -> Iterator[Problem]:
    for words in statement.all_words():
        for call in words.find_data("call"):
            name = cast(Token, call.children[0])
            if name not in FUNCTIONS:
                help_line = nearest(name, FUNCTIONS)
                yield codes.BAD_CALL(
                    span=span_of(name), name=name, why="is not a function", help=help_line
                )
            elif why := arity_problem(name, len(call.children) - 1):
                yield codes.BAD_CALL(span=span_of(call), name=name, why=why)


def _check_order(statements: list[Statement]) -> Iterator[Problem]:
    declared: dict[str, tuple[int, str]] = {}
    for i, statement in enumerate(statements):
        if statement.keyword in ("param", "let"):
            declared.setdefault(statement.name, (i, statement.keyword))
    for i, statement in enumerate(statements):
        for use in names_used(statement):
            at, keyword = declared.get(unquoted(use), (-1, ""))
            if at >= i:
                yield codes.USED_BEFORE(
                    span=span_of(use),
                    name=unquoted(use),
                    keyword=keyword,
                    help=f"move the `{keyword}` up",
                )


def names_used(statement: Statement) -> Iterator[Token]:
    """Find what the expressions of a statement refer to: no names of roles, options and transforms."""
    for words in statement.all_words():
        for part in words.iter_subtrees_topdown():
            if part.data == "word":
                yield cast(Token, part.children[0])
