"""The compiled grammar `share.lark`, and the words of the language."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Collection, Iterator
from copy import copy
from functools import cache
from operator import itemgetter

from lark import Lark, Token
from lark.grammar import Rule
from lark.lexer import BasicLexer, LexerThread

from bishare_dsl.resources import cache_folder, grammar

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

OPERATORS = {"IF", "OR", "AND", "IN", "EQ", "NE", "LE", "LT", "GE", "GT"}
OPERATORS |= {"PLUS", "MINUS", "TIMES", "OVER", "FLOOR", "MODULO"}
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
    made = Lark(
        grammar("share.lark").read_text(encoding="utf-8"),
        parser="lalr",
        lexer="basic",
        maybe_placeholders=False,
        propagate_positions=True,
        cache=_cache_file() or False,
    )
    callbacks = made.parse_interactive().parser_state.parse_conf.callbacks
    for rule in [rule for rule in callbacks if isinstance(rule, Rule)]:
        (first, *more), options = rule.expansion, rule.options
        inner = not more and not first.is_term and not first.name.startswith("_")
        if inner and options.expand1 and not rule.alias:
            # An inlined rule around one tree: Lark's own callback gives the tree its own place once more.
            callbacks[rule] = itemgetter(0)
    return made


@cache
def _lexer(*, everything: bool) -> BasicLexer:
    """Create the lexer once. `Lark.lex` would create one per text, which takes longer than parsing."""
    configuration = copy(lark().lexer_conf)
    if everything:
        configuration.ignore = ()
    return BasicLexer(configuration)


def lex(text: str, *, everything: bool = False) -> Iterator[Token]:
    """Yield the tokens of a text. White space, comments and invalid text only with ``everything``."""
    yield from LexerThread.from_text(_lexer(everything=everything), text).lex(None)


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
    return {t.pattern.value: t.name for t in lark().terminals if t.pattern.type == "str"}


def is_keyword(word: str) -> bool:
    """Return whether a name is a keyword and needs quotes."""
    return word.isalpha() and word in words()


def spelled(kind: str) -> str | None:
    """Return the spelling of a keyword or sign, or None for names, numbers and others."""
    return next((word for word, lark_name in words().items() if lark_name == kind), None)


def expected(kinds: Collection[str]) -> str:
    """Describe the tokens allowed at a position: ``a name``, ``a clause of the share or a statement``."""
    left = set(kinds)
    if "PLUS" in left:  # After a name in an expression, which could be a function.
        left.discard("LPAR")
    described = [text for kinds, text in _VALUES.items() if left.issuperset(kinds)][:1]
    if described:
        left -= {"NAME", "STRING", "INT", "FLOAT", "LPAR", "MINUS", "NOT"}
        left -= {word.upper() for word in IN_EXPRESSIONS}
    if "WHERE" in left:
        whose = "the share (such as `per` or `rank`)" if "RANK" in left else "`magnitude`"
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
