"""The grammar `share.lark` as Lark has compiled it, and the words of the language."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Collection
from functools import cache

from lark import Lark, Token

from bishare_dsl.resources import cache_folder, grammar

END = "$END"
"""What Lark calls the end of a text."""
BAD = "BAD"
STATEMENTS = ("spec", "use", "param", "let", "target", "share", "replace")
CLAUSES = (
    *("where", "per", "A", "B", "rank", "via"),
    *("alpha", "scale", "dropout", "init", "freeze", "gain", "start"),
)
"""In the order in which the formatter aligns them."""
DEFAULTS = ("alpha", "scale", "dropout", "init")
"""The clauses that stand at the top too."""
IN_EXPRESSIONS = frozenset({"alpha", "rank", "in", "out", "path", "kind", "parent"})
"""Keywords that an expression may use as they are: settings, and attributes of a site."""

_OPERATORS = {"OR", "AND", "IN", "EQ", "NE", "LE", "LT", "GE", "GT"}
_OPERATORS |= {"PLUS", "MINUS", "TIMES", "OVER", "FLOOR", "MODULO"}
STATEMENT_KINDS = frozenset(word.upper() for word in STATEMENTS) | {END}
CLAUSE_KINDS = frozenset(word.upper() for word in CLAUSES)
DEFAULT_KINDS = frozenset(word.upper() for word in DEFAULTS)


@cache
def lark() -> Lark:
    """Make the parser; where that is safe, its tables are kept in the user's own cache folder."""
    return Lark(
        grammar("share.lark").read_text(encoding="utf-8"),
        parser="lalr",
        lexer="basic",
        maybe_placeholders=False,
        propagate_positions=True,
        cache=_cache_file() or False,
    )


def _cache_file() -> str | None:
    """Tell where Lark may keep its tables: it reads them with pickle, so nobody else may write there."""
    if not hasattr(os, "geteuid"):
        return None
    try:
        folder = cache_folder() / "grammar"
        file = folder / f"share.{sys.implementation.cache_tag}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = [folder.lstat(), *([file.lstat()] if os.path.lexists(file) else [])]
    except (OSError, RuntimeError):  # RuntimeError: nobody knows where the user's home is
        return None
    kinds = [stat.S_ISDIR(found[0].st_mode), *(stat.S_ISREG(info.st_mode) for info in found[1:])]
    own = all(info.st_uid == os.geteuid() for info in found)
    return str(file) if own and all(kinds) and not found[0].st_mode & 0o077 else None


@cache
def words() -> dict[str, str]:
    """Tell what Lark calls each keyword and sign."""
    return {t.pattern.value: t.name for t in lark().terminals if t.pattern.type == "str"}


def is_keyword(word: str) -> bool:
    """Tell whether a name spelt so needs quotes."""
    return word.isalpha() and word in words()


def spelled(kind: str) -> str | None:
    """Spell a keyword or sign; None for names, numbers and the like."""
    return next((word for word, known in words().items() if known == kind), None)


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def expected(kinds: Collection[str]) -> str:
    """Say what may stand at a place: ``a name``, ``a clause of the share or a statement``."""
    left = set(kinds)
    if "PLUS" in left:  # Behind a name in an expression, which could be a function's.
        left.discard("LPAR")
    found = []
    if "INT" in left and "LPAR" in left:
        found.append("a value")
        left -= {"NAME", "STRING", "INT", "FLOAT", "LPAR", "MINUS", "NOT"}
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
    """Name a token as messages do."""
    if token.type == END:
        return "the end of the file"
    if token.type == BAD:
        return "something unreadable"
    return f"the name `{shortened(token)}`" if token.type == "NAME" else f"`{shortened(token)}`"


def shortened(text: str, width: int = 40) -> str:
    """Cut a text that is too long for a message."""
    return text if len(text) <= width else f"{text[: width - 3]}..."
