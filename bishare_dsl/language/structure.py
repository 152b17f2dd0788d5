"""Find missing, repeated and misplaced statements in a parsed file."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from bishare_dsl.spec.expression import FUNCTIONS, SPARSE, arity_problem
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
    statements = syntax.statements
    yield from _check_header(syntax, broken)
    broken_statements = _broken_statements(syntax, broken, source)
    order = _Order.of(statements)
    unique: list[tuple[str, Statement]] = []
    line = None
    for statement in statements:
        word = str(statement.keyword)
        is_whole = statement not in broken_statements
        starts_line = statement.keyword.line != line
        line = statement.keyword.line
        if word == "use":
            unique.append((f"`use {statement.name}`", statement))
        elif word in DEFAULTS and not order.is_late_default(statement):
            unique.append((f"the default `{word}`", statement))
        elif word in SINGLE and (is_whole or starts_line):
            unique.append((f"`{word}`", statement))
        if word == "spec" and statement is not syntax.header:
            break  # Ignore repetitions after a second header.
        yield from order.check(statement)
        if word in ("share", "magnitude"):
            yield from _check_share(statement, is_whole)
        for tree in statement.trees():
            yield from _check_tree(tree)
    yield from check_order(statements, statements)
    yield from _twice(unique)


def _check_header(syntax: Syntax, broken: list[int]) -> Iterator[Problem]:
    """Check that a spec begins with its header, unless reading failed before its first statement."""
    if not syntax.statements:
        return
    first = syntax.statements[0]
    header = syntax.header
    if header is not None and header is not first:
        late = Misplaced(f"spec {header.name}", header.span, first.start)
        yield codes.NO_HEADER(span=syntax.first, fact=late)
        return
    is_written = any(token.type == "SPEC" for token in syntax.tokens)
    if not is_written and (not broken or min(broken) > first.start):
        yield codes.NO_HEADER(span=syntax.first, fact=NoHeader(syntax.first.start))


def _broken_statements(syntax: Syntax, broken: list[int], source: Source) -> set[Statement]:
    """Return the statements near positions where reading failed.

    A mistake further along a line may be one of its first statement.
    """
    lines = {source.position(place)[0] for place in broken}
    broken_statements: set[Statement] = set()
    following: Statement | None = None
    end = span_of(syntax.tokens[-1]).end + 1
    for statement in reversed(syntax.statements):
        if following is not None and following.keyword.line != statement.keyword.line:
            end = following.start
        has_failure = any(statement.start <= place < end for place in broken)
        if has_failure or statement.keyword.line in lines:
            broken_statements.add(statement)
        following = statement
    return broken_statements


@dataclass(frozen=True)
class _Order:
    """The statements that end the places of others.

    Attributes:
        first_share: before it stand defaults.
        first_other: the first statement that is neither ``spec`` nor ``use``; before it stand these.
    """

    first_share: Statement | None
    first_other: Statement | None

    @classmethod
    def of(cls, statements: Sequence[Statement]) -> _Order:
        """Find them in the statements of a text."""
        shares = (part for part in statements if part.keyword == "share")
        others = (part for part in statements if part.keyword not in ("spec", "use"))
        return cls(next(shares, None), next(others, None))

    def is_late_default(self, statement: Statement) -> bool:
        """Tell whether a default follows a share."""
        return self.first_share is not None and statement.start > self.first_share.start

    def check(self, statement: Statement) -> Iterator[Problem]:
        """Check that a default and a ``use`` stand before what they are for."""
        word = str(statement.keyword)
        first_share = self.first_share
        first_other = self.first_other
        if word in DEFAULTS and first_share is not None and statement.start > first_share.start:
            late = Misplaced(word, statement.span, first_share.start)
            yield codes.LATE_DEFAULT(span=span_of(statement.keyword), word=word, fact=late)
        if word == "use" and first_other is not None and statement.start > first_other.start:
            late = Misplaced(word, statement.span, first_other.start)
            yield codes.LATE_USE(span=statement.span, fact=late)


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


def _check_share(share: Statement, is_whole: bool) -> Iterator[Problem]:
    follower = _share_without_keyword(share)
    if follower is not None:
        span = span_of(follower.name_token)
        fact = ShareWithoutKeyword(follower.name, span.start)
        role = f"`{follower.role}`"
        yield codes.UNEXPECTED(span=span, expected="`share`", found=role, fact=fact)
        return
    if not is_whole:
        return
    what = f"share `{share.name}`"
    yield from _twice([(f"`{_word(clause)}` of {what}", clause) for clause in share.clauses])
    if share.keyword != "share":
        what = f"`{share.keyword}`"
    for word in _missing_clauses(share):
        lack = MissingClause(word, bare=not share.clauses, replaces=share.replaces)
        yield codes.NO_CLAUSE(span=share.head, share=what, clause=word, fact=lack)


def _share_without_keyword(share: Statement) -> Statement | None:
    """Find a share without its keyword after another share, which is parsed as a key of a tensor."""
    words = [_word(clause) for clause in share.clauses if not clause.role]
    if len(words) == len({*words}):
        return None
    for clause in share.clauses:
        role = clause.role
        if role and (clause.name_token.column == 1 or role not in ("A", "B")):
            return next(first for first in share.clauses if first.role == role)
    return None


def _missing_clauses(share: Statement) -> list[str]:
    """Return the first words of the clauses that a share lacks."""
    words = {_word(clause) for clause in share.clauses}
    has_keys = any(clause.keyword == "per" for clause in share.clauses)
    needed: list[str] = []
    if not has_keys:
        needed.append("per")
    elif "per" not in words and not words.isdisjoint({"A per", "B per"}):
        needed += ["A per", "B per"]  # A transform decides which other tensors it pools.
    if share.keyword == "share":
        needed.append("rank")
    return [word for word in needed if word not in words]


def _word(clause: Statement) -> str:
    """Return the first words of a clause."""
    role = f"{clause.role} " if clause.role else ""
    return "start nonzero" if clause.keyword == "start" else f"{role}{clause.keyword}"


def _check_tree(tree: Words) -> Iterator[Problem]:
    """Check the names and function calls in a tree."""
    what = _NAMING.get(tree.data)
    if what is not None:
        parts = cast(list[Words], tree.children)
        yield from _twice([(f"{what} `{unquoted(first_token(p))}`", p) for p in parts])
    elif tree.data == "call":
        name = first_token(tree)
        arguments = cast(Words, tree.children[1])
        if name not in (*FUNCTIONS, SPARSE):
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
