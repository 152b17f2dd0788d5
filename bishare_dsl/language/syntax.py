"""The syntax tree: what a text says, word for word, before anything is known of its meaning.

A `Statement` is a statement or a clause. Its words and expressions are Lark's trees and tokens, named as in
`share.lark`; their places are those of a `Span`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeAlias, cast

from lark import Token, Tree

from bishare_dsl.diagnostics import Span

Words: TypeAlias = Tree[Token]


def span_of(part: Token | Words) -> Span:
    """Place a token or a tree."""
    place = part.meta if isinstance(part, Tree) else part
    return Span(cast(int, place.start_pos), cast(int, place.end_pos))


def first_token(part: Token | Words) -> Token:
    """Return a token, or the first one of a tree that begins with one: the name of what has a name."""
    return part if isinstance(part, Token) else cast(Token, part.children[0])


def unquoted(token: Token) -> str:
    """Read a name without its quotes; with them if an escape in it means nothing."""
    if token.type == "STRING":
        with suppress(ValueError):
            text = cast(str, json.loads(token, strict=False))
            text.encode()
            return text
    return str(token)


@dataclass(slots=True, eq=False)
class Statement:
    """A statement with its clauses, or a clause; one of these at the top is a default for all shares.

    ``keyword`` is its first word but for ``replace``, and ``per`` where that is a role; ``replaces`` says
    whether ``replace`` stands before it.
    """

    keyword: Token
    words: Words
    start: int
    end: int
    replaces: bool = False
    clauses: list[Statement] = field(default_factory=list)

    @property
    def span(self) -> Span:
        """All of it."""
        return Span(self.start, self.end)

    @property
    def name_token(self) -> Token:
        """The name of a statement that has one: all but ``target``, ``train`` and the clauses."""
        return first_token(self.words)

    @property
    def name(self) -> str:
        """The name, without its quotes."""
        return unquoted(self.name_token)

    @property
    def role(self) -> str | None:
        """The role of the tensor that a clause `A per ...` gives a key of its own; None of any other."""
        return self.name if self.words.data == "role_per" else None

    @property
    def head(self) -> Span:
        """All up to the name."""
        return Span(self.start, span_of(self.name_token).end)

    def trees(self) -> Iterator[Words]:
        """Yield all trees of it and of its clauses, each from the top down."""
        for part in (self, *self.clauses):
            yield from part.words.iter_subtrees_topdown()


@dataclass(slots=True, eq=False)
class Syntax:
    """A whole text. ``tokens`` has white space and comments too, and an empty one at the end."""

    statements: list[Statement]
    tokens: list[Token]

    @property
    def header(self) -> Statement | None:
        """The first ``spec`` of the text."""
        return next((s for s in self.statements if s.keyword == "spec"), None)

    @property
    def first(self) -> Span:
        """The place of the first word."""
        if self.statements:
            return span_of(self.statements[0].keyword)
        return span_of(next(t for t in self.tokens if t.type not in ("SPACE", "COMMENT")))

    def __str__(self) -> str:
        """Return the trees, a node a line."""
        lines = []
        for statement in self.statements:
            lines += ["replace "] * statement.replaces
            lines += [part.words.pretty() for part in (statement, *statement.clauses)]
        return "".join(lines).rstrip("\n")
