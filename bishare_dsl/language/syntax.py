"""The syntax tree: what a text says, word for word, before anything is known of its meaning.

Nodes are plain dataclasses. They are not frozen, nor compared by value, because making such classes costs
ten times as much at start-up as reading a spec does; treat them as constants all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from bishare_dsl.diagnostics import Span


@dataclass(slots=True, eq=False)
class Comment:
    """``# ...`` to the end of its line; ``after_blank`` where an empty line stands above it."""

    text: str
    start: int
    after_blank: bool = False


@dataclass(slots=True, eq=False)
class Token:
    """A word or sign of the text. Every comment belongs to a token: the comments on lines of their own to
    the next one (``before``), one at the end of a line to the last one of that line (``after``)."""

    kind: str
    text: str
    start: int
    end: int
    after_blank: bool = False
    before: tuple[Comment, ...] = ()
    after: Comment | None = None
    joins: str = ""
    """``left`` or ``right`` where a brace or a minus stands close to what follows or precedes it."""

    @property
    def span(self) -> Span:
        return Span(self.start, self.end)


@dataclass(slots=True, eq=False)
class Node:
    """A part of the text: characters ``start`` to ``end``."""

    start: int
    end: int

    @property
    def span(self) -> Span:
        return Span(self.start, self.end)


@dataclass(slots=True, eq=False)
class Name(Node):
    """A name, as it reads without its quotes."""

    text: str


@dataclass(slots=True, eq=False)
class Number(Node):
    """A number, with its sign."""

    value: int | float


@dataclass(slots=True, eq=False)
class Group(Node):
    """Parentheses round an expression."""

    inner: Expr


@dataclass(slots=True, eq=False)
class Operation(Node):
    """``operator`` is as written: arithmetic, a comparison, ``and``, ``or``, ``not`` or ``sqrt``."""

    operator: str
    operands: list[Expr]


@dataclass(slots=True, eq=False)
class Interval(Node):
    """``first .. last``."""

    first: Expr
    last: Expr


@dataclass(slots=True, eq=False)
class Membership(Node):
    """``value in {items}``, or ``value in first .. last``."""

    value: Expr
    items: list[Expr | Interval]


@dataclass(slots=True, eq=False)
class Glob(Node):
    """``path "..."``, ``kind ...`` or ``parent ...``."""

    attribute: str
    pattern: Name


Expr: TypeAlias = Name | Number | Group | Operation | Membership | Glob


@dataclass(slots=True, eq=False)
class Choice(Node):
    """``included, ... except excluded, ...``."""

    included: list[Expr]
    excluded: list[Expr]


@dataclass(slots=True, eq=False)
class Case(Node):
    """``items: value``, or ``else: value`` with no items."""

    items: list[Expr | Interval]
    value: Expr


@dataclass(slots=True, eq=False)
class Cases(Node):
    """``match subject { ... }``."""

    subject: Expr
    cases: list[Case]


@dataclass(slots=True, eq=False)
class Pair(Node):
    """``name = value`` of a transform, ``A value`` of an init, ``rank init value`` of a gain."""

    name: Name
    value: Expr


@dataclass(slots=True, eq=False)
class Clause(Node):
    """A clause of a share, or a default: its keyword and what follows it.

    ``value`` is a list of keys for ``per`` (empty: ``per model``), of names for ``freeze`` and of pairs for
    ``init`` and ``gain``, a `Choice` for ``where``, and nothing for ``start nonzero``. The keyword of
    ``A per ...`` is its ``A``.
    """

    keyword: Token
    value: Expr | Choice | Cases | Transform | list[Expr] | list[Name] | list[Pair] | None


@dataclass(slots=True, eq=False)
class Transform(Node):
    """``Name(option = value, ...)``."""

    name: Name
    options: list[Pair]


@dataclass(slots=True, eq=False)
class Statement(Node):
    """``spec``, ``use``, ``param``, ``let``, ``target`` or ``share``; a `Clause` at the top is a default.

    ``replaces`` where ``replace`` stands before the keyword.
    """

    keyword: Token
    name: Name | None = None
    value: Expr | Choice | None = None
    clauses: list[Clause] = field(default_factory=list)
    replaces: bool = False


@dataclass(slots=True, eq=False)
class Syntax(Node):
    """A whole text. ``tokens`` ends with an empty one, which holds the comments at the end."""

    statements: list[Statement | Clause]
    tokens: list[Token]


def walk(part: object) -> Iterator[Node]:
    """All nodes of a part, itself first, in the order of the text."""
    # A stack of its own, for a text may be nested deeper than Python's calls may.
    waiting = [part]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += reversed(part)
        elif isinstance(part, Node):
            yield part
            waiting += [getattr(part, name) for name in reversed(type(part).__slots__)]
