"""The words of the language: which start what, and how a set of terminals is put to a reader."""

from __future__ import annotations

from collections.abc import Collection

from bishare_dsl.language.lexer import BAD
from bishare_dsl.language.syntax import Token
from bishare_dsl.language.tables import END, tables

STATEMENTS = ("spec", "use", "param", "let", "target", "share", "replace")
CLAUSES = (
    *("where", "per", "A", "B", "rank", "via"),
    *("alpha", "scale", "dropout", "init", "freeze", "gain", "start"),
)
"""In the order in which the formatter aligns them."""
IN_EXPRESSIONS = frozenset({"alpha", "rank", "in", "out", "path", "kind", "parent"})
"""Keywords that an expression may use as they are: settings, and attributes of a site."""

_OPERATORS = {"OR", "AND", "IN", "EQ", "NE", "LE", "LT", "GE", "GT"}
_OPERATORS |= {"PLUS", "MINUS", "TIMES", "OVER", "FLOOR", "MODULO"}
STATEMENT_KINDS = frozenset(word.upper() for word in STATEMENTS) | {END}
CLAUSE_KINDS = frozenset(word.upper() for word in CLAUSES)


def is_keyword(word: str) -> bool:
    """Whether a name spelt so needs quotes."""
    return word.isalpha() and word in tables().words


def spelled(kind: str) -> str | None:
    """How a keyword or sign is written; None for names, numbers and the like."""
    return next((word for word, known in tables().words.items() if known == kind), None)


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def expected(kinds: Collection[str]) -> str:
    """What may stand at a place, in words: ``a name``, ``a clause of the share or a statement``."""
    left = set(kinds)
    found = []
    if "INT" in left and "LPAR" in left:
        found.append("a value")
        left -= {"NAME", "STRING", "INT", "FLOAT", "LPAR", "MINUS", "SQRT", "NOT"}
        left -= {word.upper() for word in IN_EXPRESSIONS}
    elif "INT" in left:
        found.append("a number or a name" if "NAME" in left else "a number")
        left -= {"NAME", "STRING", "INT", "FLOAT", "MINUS"}
    elif "NAME" in left:
        found.append("a name")
        left -= {"NAME", "STRING"}
    elif "STRING" in left:
        found.append("a pattern in quotes")
        left -= {"STRING"}
    if "WHERE" in left:
        found.append("a clause of the share (such as `per` or `rank`)")
        left -= CLAUSE_KINDS
    if "TARGET" in left:
        found.append("a statement (such as `share`)")
        left -= STATEMENT_KINDS | CLAUSE_KINDS
    # An operator may follow any value: to list them all would hide what matters.
    if found or left - _OPERATORS:
        left -= _OPERATORS
    words = sorted(f"`{word}`" for kind in left if (word := spelled(kind)))
    return _listed(words + found or ["the end of the file"])


def found(token: Token) -> str:
    """A token, as a message names it."""
    text = token.text if len(token.text) <= 40 else f"{token.text[:37]}..."
    if token.kind == END:
        return "the end of the file"
    if token.kind == BAD:
        return "something unreadable"
    return f"the name `{text}`" if token.kind == "NAME" else f"`{text}`"
