"""Mistakes that are known: what was meant, and how reading goes on behind them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from lark import Token

from bishare_dsl.diagnostics import Edit, Span, nearest
from bishare_dsl.language.grammar import (
    BAD,
    CLAUSE_KINDS,
    STATEMENT_KINDS,
    is_keyword,
    spelled,
    words,
)
from bishare_dsl.language.syntax import span_of

_QUOTES = tuple("'`´‘’‚“”„«»")
_NUMBERS = ("INT", "FLOAT")
_ITEMS = ("NAME", "STRING", "INT", "FLOAT", "PATH", "KIND", "PARENT")
_REMEDIES = {
    "[": "a list has no brackets, and a set has braces: `layer in {0, 4}`",
    "]": "a list has no brackets, and a set has braces: `layer in {0, 4}`",
    "\xa0": "this looks like a space and is another character",
    ":": "there is no `:` between a word and what it says",
    ";": "there is no `;` behind a statement or a clause",
}


class Slip(NamedTuple):
    """What to do about a mistake: ``dropped`` tokens are left out, by their distance from it, the token is
    taken for one of ``kind``, or one of the kind ``missing`` is put before it; with none of these, reading
    goes on at the next clause or statement. ``at`` is the token to point at, where that is another one.
    ``edits`` do what ``help`` says to the text, where that is not the same: none if one cannot tell."""

    help: str | None = None
    dropped: Sequence[int] = ()
    kind: str | None = None
    missing: str | None = None
    at: Token | None = None
    edits: tuple[Edit, ...] | None = None


def edits_of(tokens: Sequence[Token], position: int, slip: Slip) -> tuple[Edit, ...]:
    """Give what the text would have to say in place of the mistake at a token, if that is known."""
    if slip.edits is not None:
        return slip.edits
    if slip.missing:
        behind = span_of(tokens[position - 1]).end
        return (Edit(Span(behind, behind), spelled(slip.missing) or ""),)
    if slip.kind:
        return _write(spelled(slip.kind) or "", tokens[position])
    return tuple(edit for i in slip.dropped for edit in _write("", tokens[position + i]))


def _write(text: str, first: Token, last: Token | None = None) -> tuple[Edit, ...]:
    """Write a text in place of a token, or of all from one to another."""
    return (Edit(Span(span_of(first).start, span_of(last or first).end), text),)


def in_quotes(word: str) -> str:
    """Say how a keyword becomes a name."""
    return f'in quotes it is a name: `"{word}"`'


def known_slip(tokens: Sequence[Token], position: int, allowed: Collection[str]) -> Slip:
    """Recognise the mistake at a token, if it is known, where only the kinds in ``allowed`` could stand."""
    token = tokens[position]
    before = [*reversed(tokens[max(0, position - 3) : position])]
    kinds = [previous.type for previous in before] + [""] * 3
    after = tokens[position + 1 : position + 3]
    if token.type == BAD:
        return _unreadable(token, before, after)
    if token.type == "NAME" and words().get(token.lower()) in allowed:
        return Slip(f"keywords are written small: `{token.lower()}`", kind=words()[token.lower()])
    if token.type == "EQUAL" and kinds[0] in CLAUSE_KINDS:
        meant = f"{before[0]} {after[0]}".rstrip()
        return Slip(f"a clause has no `=`: `{meant}`", [0])
    if token.type == "EQUAL" and "EQ" in allowed:
        return Slip("a comparison is written `==`", kind="EQ")
    if token.type == "MINUS" and kinds[1] in ("SHARE", "PARAM", "LET", "SPEC") and len(after) > 1:
        name = f"{before[0]}_{after[0]}"
        edits = _write(name, before[0], after[0])
        return Slip(f"a name has letters, digits and `_`: `{name}`", [0, 1], edits=edits)
    if token.type in _NUMBERS and before and before[0] == "layer":
        last = after[1] if len(after) > 1 and after[0].type in ("MINUS", "DOTS") else token
        return Slip(f"layers are chosen by `layer in {token}..{last}` or `layer == {token}`")
    if token.type in _NUMBERS and kinds[0] == "LPAR" and kinds[2] == "VIA":
        return Slip(f"options have names: `{before[1]}(size = {token})`, say")
    if token.type == "FLOOR" and (not before or before[0].line != token.line):
        line = [i for i, other in enumerate(tokens[position:]) if other.line == token.line]
        return Slip("comments begin with `#`", line, edits=_write("#", token))
    if kinds[0] == "MODULO" and kinds[1] in _NUMBERS:
        number = f"{float(before[1]) / 100:g}"
        help_line = f"`%` is the rest of a division; for {before[1]} percent write `{number}`"
        return Slip(help_line, at=before[0], edits=_write(number, before[1], before[0]))
    if token in _REMEDIES:
        return _dropped(token)
    if kinds[0] in ("AND", "OR") and token.type in ("LT", "LE", "GT", "GE", "EQ", "NE", "IN"):
        return Slip(f"both conditions have a left side: `layer > 4 {before[0]} layer < 8`")
    if (opened := _not_closed(tokens[:position])) and token.type in STATEMENT_KINDS | CLAUSE_KINDS:
        return Slip(f"the `{opened}` of line {opened.line} is not closed", at=opened)
    near = kind = None
    if token.type == "NAME":
        known = [word for kind in allowed if (word := spelled(kind)) and word.isalpha()]
        near = nearest(token, known) or ""
        kind = words()[near.split("`")[1]] if near.startswith("did you mean") else None
    if allowed == {"PER"}:
        help_line = "a list has commas (`A, B`); a key for one factor reads `A per layer`"
        return Slip(help_line, kind=kind)
    if kind:
        return Slip(near, kind=kind)
    if "COMMA" in allowed and token.type in _ITEMS:
        return Slip("a comma stands between the parts of a list", missing="COMMA")
    if is_keyword(token) and "NAME" in allowed:
        edits = _write(f'"{token}"', token)
        return Slip(f"`{token}` is a keyword; {in_quotes(token)}", edits=edits)
    return Slip()


def _not_closed(tokens: Sequence[Token]) -> Token | None:
    """Find the last bracket that is open behind these tokens, in their last statement."""
    depth = 0
    for token in reversed(tokens):
        depth += (token in (")", "}")) - (token in ("(", "{"))
        if depth < 0 or token.type in STATEMENT_KINDS:
            return token if depth < 0 else None
    return None


def _dropped(token: Token) -> Slip:
    """Leave out a sign that has no place in the language, or none here."""
    # Without its brackets a list may still have to become a set; and words stay apart.
    edits = {"[": (), "]": (), "\xa0": _write(" ", token)}
    return Slip(_REMEDIES[token], [0], edits=edits.get(token))


def _unreadable(token: Token, before: Sequence[Token], after: Sequence[Token]) -> Slip:
    start, end = span_of(token).start, span_of(token).end
    if token in _QUOTES:
        closing = [2] if len(after) > 1 and after[1] in _QUOTES else []
        edits = _write('"', token) + (_write('"', after[1]) if closing else ())
        return Slip('a name is quoted with `"`', [0, *closing], edits=edits)
    if token == "." and before and before[0].type == "DOTS":
        return Slip("a range has two dots: `0..8`", [0])
    alone = not before or span_of(before[0]).end < start
    if token == "." and alone and after[0].type == "INT" and span_of(after[0]).start == end:
        edits = _write("0.", token)
        return Slip(f"a number has a digit before its point: `0.{after[0]}`", [0], edits=edits)
    if token in _REMEDIES:
        return _dropped(token)
    if len(token) > 1:
        help_line = "put a name in quotes that has letters beyond a to z"
        return Slip(help_line, edits=_write(f'"{token}"', token))
    others = "put a name in quotes that has other characters than letters, digits and `_`"
    return Slip(others if token in (".", "-") else None)
