"""The compiled grammar `share.lark`, and the words of the language."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Collection, Iterator, Set
from functools import cache
from typing import Any, Self, TypeAlias, cast

from lark import Lark, Token, Tree, UnexpectedInput

from bishare_dsl.resources import cache_folder, grammar

Words: TypeAlias = Tree[Token]

END = "$END"
"""Lark's name for the end of a text."""
BAD = "BAD"
STATEMENTS = ("spec", "use", "param", "let", "target", "train", "magnitude", "share", "replace")
SINGLE = ("spec", "target", "train", "magnitude")
"""Statements of which a text has one at most."""
CLAUSES = (
    *("where", "per", "rank", "via"),
    *("alpha", "scale", "dropout", "init", "freeze", "gain", "start", "plain"),
)
"""Clauses, in the order of the formatter's columns."""
DEFAULTS = ("alpha", "scale", "dropout", "init")
"""Clauses that can be defaults of the spec, too."""
IN_EXPRESSIONS = frozenset({"alpha", "rank", "in", "out", "path", "kind", "parent"})
"""Keywords that an expression may use without quotes: settings and attributes of a site."""

CONTEXTUAL = frozenset({"as", "between", "gate", "is", "of", "softmax", "then", "top", "x", "."})
"""Words and signs that the parser reads as such where they can stand, and as a name elsewhere."""

OPERATORS = {"IF", "OR", "AND", "IN", "EQ", "NE", "LE", "LT", "GE", "GT"}
OPERATORS |= {"PLUS", "MINUS", "TIMES", "OVER", "FLOOR", "MODULO", "POWER"}
STATEMENT_KINDS = frozenset(word.upper() for word in STATEMENTS) | {END}
MAGNITUDE_KINDS = frozenset({"WHERE", "PER", "INIT", "START", "PLAIN"})
CLAUSE_KINDS = frozenset(word.upper() for word in (*CLAUSES, "A", "B")) - {"PLAIN"}
# Descriptions of the tokens allowed at a position. The first that fits is used.
_VALUES = {
    ("INT", "LPAR"): "a value",
    ("INT", "NAME"): "a number or a name",
    ("INT",): "a number",
    ("NAME",): "a name",
    ("STRING",): "a pattern in quotes",
}
DEFAULT_KINDS = frozenset(word.upper() for word in DEFAULTS)


@cache
def lark() -> Lark:
    """Create the parser. Its tables are cached in the user's cache folder if that is safe."""
    return Lark(
        grammar("share.lark").read_text(encoding="utf-8"),
        parser="lalr",
        lexer="basic",
        maybe_placeholders=False,
        propagate_positions=True,
        cache=_cache_file() or False,
    )


class Word(Token):
    """A token that equals its text, whatever its kind: Lark's compare kinds, in Python."""

    __slots__ = ()
    __eq__ = str.__eq__
    __hash__ = str.__hash__

    def __new__(cls, kind: str, text: str, start: int, line: int, column: int, *ends: Any) -> Self:
        """Create a token from its kind and text, and Lark's six numbers that say where it stands."""
        word = str.__new__(cls, text)
        word.type = kind
        word.value = text
        word.start_pos = start
        word.line = line
        word.column = column
        word.end_line, word.end_column, word.end_pos = ends
        return word


class Reading:
    """A statement or clause that is being read by Lark's interactive parser."""

    def __init__(self) -> None:
        self._parser = lark().parse_interactive()

    def choices(self) -> Collection[str]:
        """Return the kinds of token that may follow: all that can, and some that cannot."""
        return cast("Collection[str]", self._parser.choices())

    def accepts(self) -> Set[str]:
        """Return the kinds of token that can follow."""
        return cast("Set[str]", self._parser.accepts())

    def feed(self, token: Token) -> bool:
        """Read a token, or return False if it cannot follow."""
        try:
            self._parser.feed_token(token)
        except UnexpectedInput:
            return False
        return True

    def finish(self) -> Words | None:
        """Return the tree of the tokens, or None if they are not complete."""
        try:
            return cast("Words", self._parser.feed_eof())
        except UnexpectedInput:
            return None


@cache
def _pattern() -> re.Pattern[str]:
    """Return one pattern for all tokens, in which keywords are names."""
    patterns = [
        terminal
        for terminal in lark().terminals
        if terminal.name not in ("PLAIN", "DOT") and not terminal.pattern.value.isalpha()
    ]
    patterns.sort(key=lambda t: (-t.priority, -t.pattern.max_width, -len(t.pattern.value)))
    return re.compile("|".join(f"(?P<{t.name}>{t.pattern.to_regexp()})" for t in patterns))


def lex(text: str, *, everything: bool = False) -> Iterator[Token]:
    """Yield the tokens of a text. White space, comments and invalid text only with ``everything``."""
    line = 1
    line_start = 0
    keywords = words()
    for match in _pattern().finditer(text):
        kind = match.lastgroup or ""
        word = match.group()
        start = match.start()
        if kind == "NAME" and word not in CONTEXTUAL:
            kind = keywords.get(word, kind)
        if everything or kind not in ("SPACE", "COMMENT", BAD):
            yield Word(kind, word, start, line, start - line_start + 1, None, None, match.end())
        if "\n" in word:
            line += word.count("\n")
            line_start = start + word.rfind("\n") + 1


def _cache_file() -> str | None:
    """Return a file for Lark's tables, which are pickled, in a folder that only the user can write to."""
    if not hasattr(os, "geteuid"):
        return None
    try:
        folder = cache_folder() / "grammar"
        file = folder / f"share.{sys.implementation.cache_tag}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        parts = [folder.lstat(), *(path.lstat() for path in folder.glob(file.name))]
    except (OSError, RuntimeError):  # RuntimeError: the home folder is unknown
        return None
    closed = stat.S_ISDIR(parts[0].st_mode) and not parts[0].st_mode & 0o077
    whole = all(stat.S_ISREG(part.st_mode) for part in parts[1:])
    own = all(part.st_uid == os.geteuid() for part in parts)
    return str(file) if closed and whole and own else None


@cache
def words() -> dict[str, str]:
    """Map each keyword and sign to Lark's name for it."""
    return {t.pattern.value: str(t.name) for t in lark().terminals if t.pattern.type == "str"}


def is_keyword(word: str) -> bool:
    """Return whether a name is a keyword and needs quotes."""
    return word.isalpha() and word in words() and word not in CONTEXTUAL


@cache
def spelled(kind: str) -> str | None:
    """Return the spelling of a keyword or sign, or None for names, numbers and others."""
    return next((word for word, name in words().items() if name == kind), None)


def expected(kinds: Collection[str]) -> str:
    """Describe the tokens allowed at a position: ``a name``, ``a clause of the share or a statement``."""
    left = set(kinds)
    if "PLUS" in left:  # After a name in an expression, which could be a function.
        left.discard("LPAR")
    described = [text for kinds, text in _VALUES.items() if left.issuperset(kinds)][:1]
    if described:
        left -= {"NAME", "STRING", "INT", "FLOAT", "LPAR", "MINUS", "NOT", "MATCH"}
        left -= {word.upper() for word in IN_EXPRESSIONS}
    if "WHERE" in left:
        whose = "the share (such as `per` or `rank`)" if "RANK" in kinds else "`magnitude`"
        described.append(f"a clause of {whose}")
        left -= CLAUSE_KINDS | {"PLAIN"}
    if "TARGET" in left:
        described.append("a statement (such as `share`)")
        left -= STATEMENT_KINDS | CLAUSE_KINDS
    # Omit operators, which may follow any value.
    if described or left - OPERATORS:
        left -= OPERATORS
    words = sorted(f"`{word}`" for kind in left if (word := spelled(kind)))
    *others, last = words + described or ["the end of the file"]
    return f"{', '.join(others)} or {last}" if others else last


def found(token: Token) -> str:
    """Describe a token for a message."""
    if token.type == END:
        return "the end of the file"
    if token.type == BAD:
        return "something unreadable"
    return f"the name `{shortened(token)}`" if token.type == "NAME" else f"`{shortened(token)}`"


def shortened(text: str, width: int = 40) -> str:
    """Shorten a text for a message."""
    return text if len(text) <= width else f"{text[: width - 3]}..."
