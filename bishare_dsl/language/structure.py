"""What is wrong with a text as a whole although each statement can be read: missing, twice, too late."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bishare_dsl.diagnostics import Problem, Span
from bishare_dsl.diagnostics.codes import language as codes
from bishare_dsl.language.syntax import (
    Clause,
    Name,
    Pair,
    Statement,
    Syntax,
    Transform,
    walk,
)


def check_structure(syntax: Syntax, broken: Iterable[int]) -> Iterator[Problem]:
    """Problems of a tree; ``broken`` are the places where reading failed, and nothing is missed there."""
    broken = sorted(broken)
    statements = syntax.statements
    written = {token.kind for token in syntax.tokens}
    header = next((s for s in statements if s.keyword.kind == "SPEC"), None)
    name = header.name.text if isinstance(header, Statement) and header.name else "?"
    first = statements[0].keyword if statements else syntax.tokens[0]
    place = header.span if header else Span(first.start, first.end)

    if "SPEC" not in written or (statements and header and header is not statements[0]):
        yield codes.NO_HEADER(span=first.span)
    if "TARGET" not in written:
        yield codes.NO_TARGET(span=place, spec=name)
    if "SHARE" not in written:
        yield codes.NO_SHARE(span=place, spec=name)

    share_seen = False
    given: set[str] = set()
    for i, statement in enumerate(statements):
        word = statement.keyword.text
        if isinstance(statement, Clause):
            if share_seen:
                yield codes.LATE_DEFAULT(
                    span=statement.keyword.span,
                    word=word,
                    help=f"move `{word}` above the first share, or to the share that it is meant for",
                )
            elif word in given:
                yield codes.TWICE(span=statement.span, what=f"the default `{word}`")
            yield from _twice_within(statement)
            given.add(word)
        elif word in ("spec", "target"):
            if word in given:
                yield codes.TWICE(span=statement.keyword.span, what=f"`{word}`")
            given.add(word)
        elif word == "share":
            share_seen = True
            end = statements[i + 1].start if i + 1 < len(statements) else syntax.end + 1
            whole = not any(statement.start <= place < end for place in broken)
            yield from _check_share(statement, whole)
    yield from _check_order(statements)


def _check_share(share: Statement, whole: bool) -> Iterator[Problem]:
    name = share.name.text if share.name else ""
    given: set[str] = set()
    for clause in share.clauses:
        word = "start nonzero" if clause.keyword.text == "start" else clause.keyword.text
        if word in given:
            yield codes.TWICE(span=clause.span, what=f"`{word}` of share `{name}`")
        given.add(word)
        yield from _twice_within(clause)
    for word, advice in (
        ("per", "`per module` shares nothing, `per layer` within a layer, `per model` everything"),
        ("rank", "such as `rank 8`"),
    ):
        if whole and word not in given:
            head = Span(share.start, share.name.end if share.name else share.end)
            yield codes.NO_CLAUSE(span=head, share=name, clause=word, help=advice)


def _twice_within(clause: Clause) -> Iterator[Problem]:
    pairs: list[Pair] = []
    what = "option"
    if isinstance(clause.value, Transform):
        pairs = clause.value.options
    elif clause.keyword.text == "init" and isinstance(clause.value, list):
        pairs = [pair for pair in clause.value if isinstance(pair, Pair)]
        what = "the init of"
    given: set[str] = set()
    for pair in pairs:
        if pair.name.text in given:
            yield codes.TWICE(span=pair.span, what=f"{what} `{pair.name.text}`")
        given.add(pair.name.text)


def _check_order(statements: list[Statement | Clause]) -> Iterator[Problem]:
    declared: dict[str, tuple[int, str]] = {}
    for i, statement in enumerate(statements):
        if isinstance(statement, Statement) and statement.keyword.text in ("param", "let"):
            assert statement.name is not None
            declared.setdefault(statement.name.text, (i, statement.keyword.text))
    for i, statement in enumerate(statements):
        if isinstance(statement, Statement) and statement.keyword.text in ("spec", "param"):
            continue
        value: object = statement.value
        if isinstance(statement, Statement) and statement.keyword.text == "share":
            value = [clause.value for clause in statement.clauses]
        for use in _uses(value):
            at, keyword = declared.get(use.text, (-1, ""))
            if at >= i:
                yield codes.USED_BEFORE(
                    span=use.span, name=use.text, keyword=keyword, help=f"move the `{keyword}` up"
                )


def _uses(value: object) -> Iterator[Name]:
    """The names that an expression in ``value`` refers to: not those of options, globs and transforms."""
    skipped: set[int] = set()
    for node in walk(value):
        if isinstance(node, Pair | Transform):
            skipped.add(id(node.name))
        elif hasattr(node, "pattern"):
            skipped.add(id(node.pattern))
        elif isinstance(node, Name) and id(node) not in skipped:
            yield node
