"""Find remedies for a text that cannot be read: known mistakes, and small corrections.

The known mistakes are rows of `grammars/slips.txt`.

A remedy is a candidate: `plan.advice` tries it before anybody sees it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Set
from functools import cache
from typing import NamedTuple
from unicodedata import combining, normalize

from lark import Token

from bishare_dsl.diagnostics import Edit, Remedy, Span, advise, nearest
from bishare_dsl.diagnostics.words import english
from bishare_dsl.language.grammar import BAD, CLAUSES, STATEMENTS, spelled, words
from bishare_dsl.resources import table

LONGEST = 400
"""The longest line that is searched for known mistakes."""
_KEYWORDS = "|".join((*STATEMENTS, *CLAUSES))
_KEYS = "layer|kind|module|parent|model|expert"
# Letters of other alphabets that look like Latin letters; NFKD replaces wide letters.
_LOOKALIKES = str.maketrans(
    "авгеікмнопрстухһѕјАВЕІКМНОРСТХЅЈαβγεικνορτυχΑΒΕΗΙΚΜΝΟΡΤΥΧΖı",
    "abreikmhonpctyxhsjABEIKMHOPCTXSJabyeikvoptuxABEHIKMNOPTYXZi",
)
_SIGNS = {"≥": ">=", "≤": "<=", "≠": "!=", "×": "*", "÷": "//", "…": "..", "–": "-", "−": "-"}
_SIGNS |= {"∧": "and", "∨": "or", "¬": "not", "∈": "in", "—": "-", "；": ";", "，": ",", "：": ":"}
# Kinds of corrections after which a statement may have other mistakes.
_CERTAIN = ("letter", "space", "unseen", "latin", "quote", "percent", "word", "split")


class Row(NamedTuple):
    """A known mistake: its pattern in a line, what to write instead, if that is certain, and what to say."""

    pattern: re.Pattern[str]
    instead: tuple[str, ...]
    help: str


@cache
def rows() -> list[Row]:
    """Read the table of known mistakes, whose header explains it."""
    read = []
    for pattern, said in table("slips.txt"):
        pattern, certain, instead = pattern.partition(" =>")
        for name, among in (("KEYWORD", _KEYWORDS), ("KEY", _KEYS)):
            pattern = pattern.replace(f"<{name}>", f"(?:{among})")
        texts = tuple(text.replace("·", " ") for text in instead.removeprefix(" ").split(" OR "))
        read.append(Row(re.compile(pattern), texts if certain else (), said))
    return read


def cause(line: str) -> str | None:
    """Return what is wrong with a line, if it has a known mistake that no text surely mends."""
    causes = (row.help for row in rows() if not row.instead and row.pattern.search(line))
    return next(causes, None)


class Place(NamedTuple):
    """Where reading stopped: a line and its offset, the token with its column, and the token before.

    ``allowed`` are the kinds of token that may stand there.
    """

    line: str
    start: int
    column: int
    token: Token
    before: Token | None
    allowed: Set[str]


def remedies(place: Place) -> Iterator[Remedy]:
    """Yield the remedies that may mend the text at a place, the likeliest first."""
    line = place.line
    if len(line) > LONGEST:
        return
    for row in rows():
        for match in row.pattern.finditer(line):
            between = line[match.end() : place.column]
            if match.start() <= place.column and not re.search(r"\w\W+\w", between):
                for instead in row.instead:
                    new = re.sub(r"(\d+)↓", lambda n: f"{int(n[1]) - 1}", match.expand(instead))
                    help = match.expand(row.help.replace("{new}", new.strip().replace("\\", "")))
                    whole = line[: match.start()] + new + line[match.end() :]
                    guess = len(row.instead) > 1
                    yield _remedy(place, whole, help, row.pattern.pattern, guess)
    for kind, first, last, new, help in _corrections(place):
        before, after = line[:first], line[last:]
        if not new:  # One space is left of two.
            before, gap = before.rstrip(), f"{before[-1:]}{after[:1]}"
            after = " " * (" " in gap) + after.lstrip()
        whole = f"{before}{new}{after}".rstrip()
        yield _remedy(place, whole, help, kind, kind not in _CERTAIN)


def _remedy(place: Place, line: str, help: str, kind: str, guess: bool = False) -> Remedy:
    """Return the remedy that changes the line of a place."""
    edits = (edit_between(place.line, line, place.start),)
    return Remedy(help, edits, kind, guess=guess)


def edit_between(old: str, new: str, start: int) -> Edit:
    """Return the edit that turns a text, which starts at an offset, into another one."""
    first = _same(old, new)
    last = _same(old[first:][::-1], new[first:][::-1])
    return Edit(Span(start + first, start + len(old) - last), new[first : len(new) - last])


def _same(one: str, other: str) -> int:
    """Count the characters with which both texts begin."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


_Correction = tuple[str, int, int, str, str]


def _corrections(place: Place) -> Iterator[_Correction]:
    """Yield corrections at the token: their kind, the columns to replace, the new text and the help."""
    token, at, before = str(place.token), place.column, place.before
    end = at + len(token)
    beside = before is not None and before.line == place.token.line
    if place.token.type == BAD:
        plain = normalize("NFKD", token).translate(_LOOKALIKES)
        latin = "".join(letter for letter in plain if not combining(letter))
        if token in _SIGNS:
            yield "letter", at, end, _SIGNS[token], f"write `{_SIGNS[token]}`"
        elif token.isspace():
            yield "space", at, end, " ", "write a plain space"
        elif not token.isprintable():
            yield "unseen", at, end, "", "leave this invisible character out"
        elif latin != token and re.fullmatch(r"[A-Za-z_]\w*", latin, re.ASCII):
            odd = next(letter for letter in token if not letter.isascii())
            help = f"did you mean `{latin}`? U+{ord(odd):04X} is not one of the letters a to z"
            yield "latin", at, end, latin, help
        if token.isalpha():
            yield "quote", at, end, f'"{token}"', f'put the name in quotes: `"{token}"`'
    if place.token.type in ("NAME", "STRING") or token in words():
        yield from _words(place)
    if percent := re.search(
        r"\b(?:dropout|scale)\W+(([\d.]+)\s*%)\s*(?:\w+ )?$", place.line[: at + 1]
    ):
        number, (first, last) = f"{float(percent[2]) / 100:g}", percent.span(1)
        yield "percent", first, last, number, f"write {percent[2]} percent as `{number}`"
    if re.fullmatch(r"[^\w\s\"]+", token) and token.isascii():
        operator = re.search(r"[*/+%<>.^&|~!$@-]", place.line[max(at - 1, 0) : end + 1])
        # An operator means something, and the bracket may be missing that another one closes.
        needless = [""] * (operator is None and token not in ")}")
        for sign in ("==" if token == "=" else "=", *needless, *",;:)}({".replace(token, "")):
            help = f"write `{sign}` instead of `{token}`" if sign else f"leave `{token}` out"
            yield f"sign {token} {sign}", at, end, sign, help
    numbers = ["INT"] if before is not None and before.type == "INT" else []
    if beside and place.token.type in ("NAME", "STRING", "KIND", "PARENT", "PATH", *numbers):
        gap = len(place.line[:at].rstrip())
        yield "comma", gap, end, f", {token}", "put a comma between the parts of a list"
    missing = [word for kind in place.allowed if (word := spelled(kind)) and word.isalpha()]
    for word in missing if len(missing) == 1 else ():
        yield f"missing {word}", at, at, f"{word} ", f"write `{word}` before `{token}`"
    for sign in ")}":
        yield "close", at, end, f"{sign} {token}", f"close the bracket: write `{sign}`"
    if token.lower() in english() and beside and token.lower() not in words():
        yield "english", at, end, "", f"leave `{token}` out"


def _words(place: Place) -> Iterator[_Correction]:
    """Yield corrections of a word that is misspelt or of another program."""
    token, at, small = str(place.token), place.column, place.token.lower()
    end = at + len(token)
    listed = [word for kind in place.allowed if (word := spelled(kind)) and len(word) > 2]
    meant: list[tuple[str, str, str]] = []
    if called := advise("keyword", token):
        meant.append(("word", called, f"it is called `{called}`"))
    if small != token and small in words():
        meant.append(("word", small, f"write keywords in small letters: `{small}`"))
    meant += [("near", word, f"did you mean `{word}`?") for word in _near(token, listed)]
    rest = place.line[end:]
    bare = re.sub(r"[\"'\[\](){}]", "", re.sub(r"^\s*[=:]\s*", " ", rest))
    for kind, word, help in meant:
        yield kind, at, end, word, help
        if bare != rest:
            yield kind, at, len(place.line), word + bare, f"{help.rstrip('?')}: `{word}{bare}`"
    for word in listed:
        rest = token[len(word) :].lstrip("_")
        if token.startswith(word) and (rest.isdigit() or rest in _KEYS.split("|")):
            yield "split", at, end, f"{word} {rest}", f"a space is missing: `{word} {rest}`"
    before = place.before
    if before is None or not place.line[:at].endswith(f"{before} "):
        return
    start = at - len(before) - 1
    if before.type == "NAME":
        for word in _near(before, [word for word in words() if len(word) > 2]):
            yield "nearer", start, end, f"{word} {token}", f"did you mean `{word}`?"
    yield "swap", start, end, f"{token} {before}", f"write `{token} {before}`"


def _near(word: str, among: Iterable[str]) -> list[str]:
    """Return the nearest of some words, or nothing."""
    near = nearest(str(word), among, few=0) or ""
    # Few letters are near to much.
    return [one for one in near.split("`")[1:2] if len(word) > 3 or one[0] == word[0].lower()]
