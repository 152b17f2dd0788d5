"""The syntax tree of a text, without its meaning.

A `Statement` is a statement or a clause. Its words and expressions are Lark's trees and tokens, named as in
`share.lark`, with positions as in a `Span`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import field
from typing import cast

from lark import Token, Tree

from bishare_dsl.diagnostics import Span
from bishare_dsl.diagnostics.record import Record
from bishare_dsl.language.grammar import Words


def span_of(part: Token | Words) -> Span:
    """Return the span of a token or a tree."""
    place = part.meta if isinstance(part, Tree) else part
    return Span(place.start_pos, place.end_pos)  # type: ignore[arg-type]


def first_token(part: Token | Words) -> Token:
    """Return a token, or the first token of a tree that begins with a name."""
    return part if isinstance(part, Token) else cast(Token, part.children[0])


def unquoted(token: Token) -> str:
    """Remove the quotes of a name, unless it contains an invalid escape."""
    if token.type == "STRING":
        with suppress(ValueError):
            text = cast(str, json.loads(token, strict=False))
            text.encode()
            return text
    return str(token)


class Statement(Record, frozen=False, eq=False):
    """A statement with its clauses, or a clause. A clause at the top level is a default for all shares.

    ``keyword`` is the first word after an optional ``replace``, or ``per`` if that word is a role.
    ``replaces`` says whether there is a ``replace``.
    """

    keyword: Token
    words: Words
    start: int
    end: int
    replaces: bool = False
    clauses: list[Statement] = field(default_factory=list)

    @property
    def span(self) -> Span:
        """The span of the whole statement."""
        return Span(self.start, self.end)

    @property
    def name_token(self) -> Token:
        """The name of a statement other than ``target``, ``train`` and clauses."""
        return first_token(self.words)

    @property
    def name(self) -> str:
        """The name, without its quotes."""
        return unquoted(self.name_token)

    @property
    def role(self) -> str | None:
        """The role in a clause such as `A per ...` or `A is ...`, or None."""
        return self.name if self.words.data in ("role_per", "role_is") else None

    @property
    def head(self) -> Span:
        """The span up to the name."""
        return Span(self.start, span_of(self.name_token).end)

    def trees(self) -> Iterator[Words]:
        """Yield all trees of the statement and its clauses, from the top down."""
        for part in (self, *self.clauses):
            yield from part.words.iter_subtrees_topdown()


class Syntax(Record, frozen=False, eq=False):
    """A whole text. ``tokens`` includes white space, comments and an empty token at the end."""

    statements: list[Statement]
    tokens: list[Token]

    @property
    def header(self) -> Statement | None:
        """The first ``spec`` statement."""
        return next((s for s in self.statements if s.keyword == "spec"), None)

    @property
    def first(self) -> Span:
        """The span of the first word."""
        if self.statements:
            return span_of(self.statements[0].keyword)
        return span_of(next(t for t in self.tokens if t.type not in ("SPACE", "COMMENT")))
