"""Find missing, repeated and misplaced statements in a parsed file."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import cast

from lark import Token, Tree

from bishare_dsl.diagnostics import Problem, Source, Span
from bishare_dsl.diagnostics.codes import language as codes
from bishare_dsl.language.facts import (
    Misplaced,
    Missing,
    MissingClause,
    NoHeader,
    Repeated,
    ShareWithoutKeyword,
    UsedBefore,
)
from bishare_dsl.language.grammar import DEFAULTS, SINGLE
from bishare_dsl.language.parse import Problems, parse
from bishare_dsl.language.syntax import Statement, Syntax, Words, first_token, span_of, unquoted
from bishare_dsl.spec.expression import FUNCTIONS, arity_problem
from bishare_dsl.spec.facts import UnknownName

# Rules whose parts begin with a name, and the noun for such a part in messages.
_NAMING = {"options": "option", "places": "place"} | {
    word: f"the {word} of" for word in ("init", "gain", "freeze")
}
# Two of these statements can be joined into one with a list.
_LIST_STATEMENTS = ("target", "train", "per", "freeze", "init", "gain")


def parse_and_check(source: Source, problems: Problems) -> Syntax:
    """Parse a text and check its structure. Problems that do not depend on other files go to ``problems``."""
    syntax = parse(source, problems)
    broken = [problem.span.start for problem in problems.kept if problem.span]
    if not problems.full:
        problems.extend(_check_structure(syntax, broken, source))
    return syntax


def _check_structure(syntax: Syntax, broken: list[int], source: Source) -> Iterator[Problem]:
    """Find problems in the structure of a tree, except near the positions ``broken`` where reading failed."""
    statements, header = syntax.statements, syntax.header
    written = any(token.type == "SPEC" for token in syntax.tokens)
    begun = not broken or not statements or min(broken) > statements[0].start
    if (not written and statements and begun) or (
        statements and header and header is not statements[0]
    ):
        fact: NoHeader | Misplaced = NoHeader(syntax.first.start)
        if header:
            fact = Misplaced(f"spec {header.name}", header.span, statements[0].start)
        yield codes.NO_HEADER(span=syntax.first, fact=fact)
    words = [str(statement.keyword) for statement in statements]
    first_share = words.index("share") if "share" in words else len(words)
    uses_end = next((i for i, word in enumerate(words) if word not in ("spec", "use")), len(words))
    after = span_of(syntax.tokens[-1]).end + 1
    # A mistake further along a line may be one of its first statement.
    ends = [after]
    for statement, following in reversed([*pairwise(statements)]):
        apart = statement.keyword.line != following.keyword.line
        ends.append(following.start if apart else ends[-1])
    broken_lines = {source.position(place)[0] for place in broken}
    keys: list[tuple[str, Statement]] = []
    for i, (statement, word, end) in enumerate(zip(statements, words, ends[::-1], strict=False)):
        whole = not any(statement.start <= place < end for place in broken)
        whole = whole and statement.keyword.line not in broken_lines
        if word in DEFAULTS and i < first_share:
            keys.append((f"the default `{word}`", statement))
        elif word in DEFAULTS:
            default = Misplaced(word, statement.span, statements[first_share].start)
            place = span_of(statement.keyword)
            yield codes.LATE_DEFAULT(span=place, word=word, fact=default)
        elif word in SINGLE:
            if whole or i == 0 or statements[i - 1].keyword.line != statement.keyword.line:
                keys.append((f"`{word}`", statement))
            if word == "spec" and statement is not header:
                break  # Ignore repetitions after a second header.
        elif word == "use":
            keys.append((f"`use {statement.name}`", statement))
            if i > uses_end:
                late = Misplaced("use", statement.span, statements[uses_end].start)
                yield codes.LATE_USE(span=statement.span, fact=late)
        if word in ("share", "magnitude"):
            yield from _check_share(statement, whole)
        for tree in statement.trees():
            yield from _check_tree(tree)
    yield from check_order(statements, statements)
    yield from _twice(keys)


def check_complete(syntax: Syntax, kinds: Collection[str]) -> Iterator[Problem]:
    """Find what a spec lacks. ``kinds`` are the token kinds of its statements, including used files."""
    if not syntax.statements and "SPEC" not in kinds:
        return  # Another problem reports that this is not a spec.
    header = syntax.header
    name, place = (header.name, header.span) if header else ("?", syntax.first)
    adapts = not {"SHARE", "MAGNITUDE"}.isdisjoint(kinds)
    alone = "TRAIN" in kinds and not adapts  # `train` needs no share.
    if "TARGET" not in kinds and not alone:
        yield codes.NO_TARGET(span=place, spec=name)
    if not adapts and ("TARGET" in kinds or not alone):
        fact = Missing.SHARE_OR_TRAIN if alone else Missing.SHARE
        yield codes.NO_SHARE(span=place, spec=name, fact=fact)


def _twice(named: Iterable[tuple[str, Statement | Words]]) -> Iterator[Problem]:
    """Find statements, clauses and names that are given twice."""
    first_of: dict[str, Statement | Words] = {}
    for what, part in named:
        first = first_of.setdefault(what, part)
        if first is part:
            continue
        fact = None
        if isinstance(first, Statement) and isinstance(part, Statement):
            fact = Repeated(
                word=str(first.keyword),
                first=first.span,
                second=part.span,
                first_list=_list_span(first),
                second_list=_list_span(part),
                role=first.role,
            )
        yield codes.TWICE(span=_span(part), what=what, also=_span(first), fact=fact)


def _span(part: Statement | Words) -> Span:
    if isinstance(part, Statement):
        return span_of(part.keyword) if part.keyword in SINGLE else part.span
    return span_of(part)


def _list_span(part: Statement) -> Span | None:
    """Return the span of a statement's list, or None if it has none that another could be joined to."""
    if part.keyword == "where":
        return Span(span_of(part.words).start, part.end)
    if part.keyword not in _LIST_STATEMENTS or any(tree.data == "exclude" for tree in part.trees()):
        return None
    items = part.words.children[1:] if part.role else part.words.children
    if any(isinstance(item, Tree) and item.data == "model" for item in items):
        return None
    return Span(span_of(items[0]).start, part.end)


def _check_share(share: Statement, whole: bool) -> Iterator[Problem]:
    named_clauses = [(_word(clause), clause) for clause in share.clauses]
    words = [word for word, _ in named_clauses]
    roles = [clause for clause in share.clauses if clause.role]
    lines = [c.role for c in roles if c.name_token.column == 1 or c.role not in ("A", "B")]
    repeated = [_word(clause) for clause in share.clauses if not clause.role]
    if lines and len(repeated) > len({*repeated}):
        # A statement without its keyword is parsed as a key of a tensor.
        part = next(c for c in share.clauses if c.role == lines[0])
        span = span_of(part.name_token)
        fact = ShareWithoutKeyword(part.name, span.start)
        found = f"`{part.role}`"
        yield codes.UNEXPECTED(span=span, expected="`share`", found=found, fact=fact)
        return
    what = f"of share `{share.name}`"
    if whole:
        yield from _twice([(f"`{word}` {what}", clause) for word, clause in named_clauses])
    # A transform decides which other tensors it pools.
    factors = ["A per", "B per"] if {"A per", "B per"} & {*words} else []
    keyed = any(clause.keyword == "per" for clause in share.clauses)
    keys = [] if "per" in words else factors if keyed else ["per"]
    for word in [*keys, *(["rank"] if share.keyword == "share" else [])] if whole else ():
        if word not in words:
            named = what.removeprefix("of ") if share.keyword == "share" else f"`{share.keyword}`"
            lack = MissingClause(word, bare=not share.clauses, replaces=share.replaces)
            yield codes.NO_CLAUSE(span=share.head, share=named, clause=word, fact=lack)


def _word(clause: Statement) -> str:
    """Return the first words of a clause."""
    role = f"{clause.role} " if clause.role else ""
    return "start nonzero" if clause.keyword == "start" else f"{role}{clause.keyword}"


def _check_tree(tree: Words) -> Iterator[Problem]:
    """Check the names and function calls in a tree."""
    if what := _NAMING.get(tree.data):
        parts = cast(list[Words], tree.children)
        yield from _twice([(f"{what} `{unquoted(first_token(p))}`", p) for p in parts])
    elif tree.data == "call":
        name, arguments = first_token(tree), cast(Words, tree.children[1])
        if name not in FUNCTIONS:
            why = "is not a function"
            fact = UnknownName(str(name), "function", frozenset(FUNCTIONS))
            yield codes.BAD_CALL(span=span_of(name), name=name, why=why, fact=fact)
        elif problem := arity_problem(name, len(arguments.children)):
            yield codes.BAD_CALL(span=span_of(tree), name=name, why=problem)


def check_order(statements: list[Statement], within: Iterable[Statement]) -> Iterator[Problem]:
    """Find statements of ``within`` that use a param or let before its declaration in ``statements``."""
    places = {part: i for i, part in enumerate(statements)}
    declared: dict[str, Statement] = {}
    circle: list[str] | None = None
    for statement in statements:
        if statement.keyword in ("param", "let"):
            declared.setdefault(statement.name, statement)
    for statement in within:
        for use in names_used(statement):
            name = unquoted(use)
            declaration = declared.get(name)
            if declaration is None or places[declaration] < places[statement]:
                continue
            if circle is None:
                circle = _circle(declared)
            in_circle = name in circle and statement in map(declared.get, circle)
            word = str(declaration.keyword)
            fact = UsedBefore(
                name=name,
                keyword=word,
                declaration=declaration.span,
                statement=statement.start,
                reads_itself=name in map(unquoted, names_used(declaration)),
                circle=tuple(circle) if in_circle else (),
                replaces_let=statement.replaces and statement.keyword == "let",
            )
            yield codes.USED_BEFORE(span=span_of(use), name=name, keyword=word, fact=fact)


def _circle(declared: Mapping[str, Statement]) -> list[str]:
    """Return the names of some params or lets that read each other in a circle, or none."""
    from graphlib import CycleError, TopologicalSorter

    try:
        reads = {name: {*map(unquoted, names_used(part))} for name, part in declared.items()}
        TopologicalSorter(reads).prepare()
    except CycleError as error:
        return sorted(error.args[1][1:])
    return []


def names_used(statement: Statement) -> Iterator[Token]:
    """Yield the names in expressions and after `freeze`, which may refer to params and lets."""
    for tree in statement.trees():
        if tree.data in ("word", "freeze"):
            yield from cast(list[Token], tree.children)
