"""Facts about texts that cannot be read. See `spec/facts.py`."""

from __future__ import annotations

from collections.abc import Set
from enum import Enum, auto

from lark import Token

from bishare_dsl.diagnostics import Span
from bishare_dsl.diagnostics.record import Record


class Stop(Record):
    """Where reading stopped: a line and its offset, the token with its column, and the token before it.

    Attributes:
        allowed: the kinds of token that may stand there.
        declared: the names that the text declares.
        complete: whether the words before are a whole statement.
        opened: a bracket that is never closed, or None.
        keyword: whether the token is a keyword that stands for a name.
    """

    line: str
    start: int
    column: int
    token: Token
    before: Token | None
    allowed: Set[str]
    declared: frozenset[str] = frozenset()
    complete: bool = False
    opened: Token | None = None
    keyword: bool = False


class Foreign(Record):
    """A text that is no spec: the language that it seems to be, or None if it is empty."""

    language: str | None


class QuotedPattern(Record):
    """A text in quotes with a backslash, where a pattern may stand, after the word ``before``."""

    pattern: str
    before: Token


class Misplaced(Record):
    """A statement, or a header, that must stand at the offset ``before``."""

    word: str
    statement: Span
    before: int


class NoHeader(Record):
    """A text whose first statement, at an offset, is not a header."""

    first: int


class Repeated(Record):
    """Two statements or clauses of which one may stand, with the spans of their lists.

    The lists are None if they cannot be joined. ``role`` is the role before `per`.
    """

    word: str
    first: Span
    second: Span
    first_list: Span | None = None
    second_list: Span | None = None
    role: str | None = None


class Missing(Enum):
    """What a spec or a share lacks."""

    TARGET = auto()
    SHARE = auto()
    SHARE_OR_TRAIN = auto()


class MissingClause(Record):
    """A share that lacks a clause. ``bare`` says that it has none at all."""

    clause: str
    bare: bool
    replaces: bool


class ShareWithoutKeyword(Record):
    """The name of a share, at an offset, without the word `share` before it."""

    name: str
    start: int


class UsedBefore(Record):
    """A param or let that is used before its declaration. ``circle`` has those that read each other."""

    name: str
    keyword: str
    declaration: Span
    statement: int
    reads_itself: bool
    circle: tuple[str, ...]
    replaces_let: bool


class NotReplaced(Record):
    """A statement of a name that a used file has, without `replace`."""

    keyword: str
    name: str
    start: int


class NothingToReplace(Record):
    """A `replace` of a name that no used file has, the span of the word, and the names that there are."""

    name: str
    replace: Span
    valid: frozenset[str]
