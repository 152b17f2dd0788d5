"""Mistakes that are known, by the table `grammars/slips.txt`: what was meant, and how reading goes on."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence, Set
from functools import cache
from typing import NamedTuple, cast
from unicodedata import normalize

from lark import Token

from bishare_dsl.diagnostics import Edit, Span, nearest
from bishare_dsl.language.grammar import (
    BAD,
    CLAUSE_KINDS,
    END,
    OPERATORS,
    STATEMENT_KINDS,
    lex,
    spelled,
    words,
)
from bishare_dsl.language.syntax import span_of
from bishare_dsl.resources import shipped_specs, table

_SETS: dict[str, Set[str]] = {
    "CLAUSE": CLAUSE_KINDS,
    "STATEMENT": STATEMENT_KINDS,
    "NUMBER": {"INT", "FLOAT"},
    "COMPARISON": {"LT", "LE", "GT", "GE", "EQ", "NE"},
    "ITEM": {"NAME", "STRING", "INT", "FLOAT", "PATH", "KIND", "PARENT"},
    "OPERATOR": {*OPERATORS, "COMMA", "EQUAL", "COLON", "LPAR", "RPAR", "LBRACE", "RBRACE"},
    BAD: {BAD, "QUOTE", "DIGIT", "LETTERS", "UNSEEN", "BLANK"},
}
_QUOTES = tuple("'`´‘’‚“”„«»")
# Letters of other alphabets that look like Latin letters; NFKC replaces wide letters.
_LOOKALIKES = str.maketrans(
    "авгеікмнопрстухһѕјАВЕІКМНОРСТХЅЈαβγεικνορτυχΑΒΕΗΙΚΜΝΟΡΤΥΧΖı",
    "abreikmhonpctyxhsjABEIKMHOPCTXSJabyeikvoptuxABEHIKMNOPTYXZi",
)
_ONCE = {"SPEC", "TARGET", "TRAIN"}
# So many words of a line are read again to try what would mend it.
_FAR = 64


class Row(NamedTuple):
    """A row of the table, which says what each part is; ``first`` is what stands before the words."""

    first: list[str]
    words: list[str]
    last: str
    instead: str | None
    arrow: str
    help: str


class Table(NamedTuple):
    """The mistakes that are known, and what a clause or statement looks like, by its kind."""

    known: list[Row]
    such: dict[str, str]


@cache
def _table() -> Table:
    """Read the table."""
    found = Table([], {})
    for pattern, said in table("slips.txt"):
        pattern, *mend = re.split(r" (=>[!>]?)(?: |$)", pattern)
        named = pattern.split(" ")
        ahead = 2 if "..." in named or named[0] == "only" else named[0] == "NEWLINE"
        last = named.pop() if named[-1] in ("LINE", "REST") else ""
        if named[1:] == ["...", "@ANY"]:
            found.such[words()[named[0]]] = said
        else:
            arrow, instead = mend or ("", None)
            found.known.append(Row(named[:ahead], named[ahead:], last, instead, arrow, said))
    return found


class Slip(NamedTuple):
    """A remedy for a mistake: ``tokens`` are read in place of those from ``first`` up to ``last``.

    Without ``tokens`` reading goes on at the next clause or statement. ``at`` is the token to point at, where
    that is not the one at which reading stopped; ``edits`` mend the text.
    """

    help: str | None
    first: int = 0
    last: int = 0
    tokens: Sequence[Token] | None = None
    at: Token | None = None
    edits: tuple[Edit, ...] = ()


def known_slip(
    tokens: Sequence[Token],
    position: int,
    allowed: Set[str],
    reads: Callable[[int, Sequence[Token], bool], bool],
) -> Slip | None:
    """Find the mistake at a token in the table, where only the kinds in ``allowed`` could stand.

    ``reads`` tells whether some tokens can be read from a position on, up to one that may stand after them,
    and, if it is asked, whether a share that ends there is whole.
    """
    given = _near_words(tokens, position, allowed)
    far = min(position + _FAR, len(tokens) - 1)
    cut_off = END not in allowed and tokens[position].line != tokens[position - 1].line
    ends = next((i for i in range(position + 1, far) if tokens[i].line != tokens[i - 1].line), far)
    for row in _table().known:
        if not _begins(row.first, tokens, position, allowed):
            continue
        if (where := _place(row, tokens, position)) is None:
            continue
        first, last, at = where
        count = len(row.words)
        named = [*tokens[first : first + count], "".join(tokens[first + count : last])]
        given |= {str(i): word for i, word in enumerate(named)}
        if row.instead is None:
            return Slip(_filled(row.help, given), at=at)
        for instead in row.instead.split(" | "):
            text = given["new"] = _filled(instead, given)
            said = _filled(row.help, given)
            ships = not text.startswith("use ") or '"' in text or text[4:] in shipped_specs()
            empty = any(not given[name] for name in re.findall(r"{([a-z]+)}", instead))
            if empty or not ships:
                continue
            slip = _mended(tokens, first, last, text)
            written = [*(slip.tokens or ()), *tokens[slip.last : slip.last + 1]]
            if row.arrow == "=>>":
                written += tokens[slip.last + 1 : ends + 1]
                if cut_off or _said_elsewhere(slip, tokens, first, last):
                    continue
                if slip.first == position and written[0].type not in {*allowed, "NAME"}:
                    continue
            if (row.arrow == "=>!" and not slip.tokens) or reads(
                slip.first, written, row.arrow == "=>>"
            ):
                edits = () if row.last == "REST" else slip.edits
                return slip._replace(help=said, at=at, edits=edits)
            if row.arrow == "=>!":
                return Slip(said, at=at, edits=slip.edits)
    return None


def _said_elsewhere(slip: Slip, tokens: Sequence[Token], first: int, last: int) -> bool:
    """Tell whether a statement is written of which the rest of the text has one already."""
    new = {token.type for token in slip.tokens or ()} & _ONCE
    return bool(new) and any(t.type in new for t in (*tokens[:first], *tokens[last:]))


def unknown_slip(tokens: Sequence[Token], position: int) -> Slip:
    """Say of a mistake that is not in the table what could stand there."""
    token, before = tokens[position], tokens[:position]
    if token.type == BAD:
        return Slip(None)
    if (opened := _not_closed(before)) and token.type in STATEMENT_KINDS | CLAUSE_KINDS:
        return Slip(f"the `{opened}` of line {opened.line} is not closed", at=opened)
    return Slip(_table().such[_clause(before)])


def _filled(text: str, given: dict[str, str]) -> str:
    """Put words in the places that a text of the table has for them."""
    return re.sub(r"\{(\w+)\}", lambda place: given[place[1]], text)


def _near_words(tokens: Sequence[Token], position: int, allowed: Set[str]) -> dict[str, str]:
    """Make what rows call by name, of the token at which reading stops and of the number before it."""
    token, before = tokens[position], tokens[max(0, position - 2) : position]
    begins = not before or before[-1].line != token.line
    kinds = allowed - (set() if begins else STATEMENT_KINDS)
    near = nearest(token, [w for kind in kinds if (w := spelled(kind)) and len(w) > 2]) or ""
    made = {"small": token.lower(), "near": "", "percent": ""}
    if near.startswith("did you mean"):
        made["near"] = near.split("`")[1]
    for where, beside in (("nearer", before[-1:]), ("after", tokens[position + 1 : position + 2])):
        named = beside[0] if beside and beside[0].type == "NAME" else ""
        found = nearest(named, [word for word in words() if len(word) > 2], few=0)
        made[where] = found.split("`")[1] if named and found else ""
    made |= dict.fromkeys(("latin", "odd"), "")
    latin = normalize("NFKC", token).translate(_LOOKALIKES)
    if latin != token and re.fullmatch(r"[A-Za-z_]\w*", latin, re.ASCII):
        odd = next(letter for letter in token if not letter.isascii())
        made |= {"latin": latin, "odd": f"U+{ord(odd):04X}"}
    if before and before[0].type in _SETS["NUMBER"]:
        made["percent"] = f"{float(before[0]) / 100:g}"
    return made


def _begins(
    first: Sequence[str], tokens: Sequence[Token], position: int, allowed: Set[str]
) -> bool:
    """Tell whether that holds which stands before the words of a row."""
    match first:
        case ["NEWLINE"]:
            return not position or tokens[position - 1].line != tokens[position].line
        case ["only", kind]:
            return {kind} <= allowed <= {kind, "LPAR", *OPERATORS}
        case [clause, "..."]:
            return spelled(_clause(tokens[:position])) in clause.split("|")
    return True


def _place(
    row: Row, tokens: Sequence[Token], position: int
) -> tuple[int, int, Token | None] | None:
    """Find the words of a row round a position: where they begin and end, and the one to point at."""
    first = position - next(i for i, word in enumerate(row.words) if word[0] == "@")
    last, at = first + len(row.words), None
    if first < 0 or last > len(tokens):
        return None
    for i, word in enumerate(row.words, first):
        plain = word[1:] if len(word) > 1 and word[0] in "@^" else word
        elsewhere = i > first and tokens[i].line != tokens[i - 1].line
        fits = i > 0 and tokens[i] == tokens[i - 1] if plain == "SAME" else _fits(plain, tokens[i])
        if not fits or (elsewhere and plain not in ("ANY", "STATEMENT")):
            return None
        at = tokens[i] if word[0] == "^" and len(word) > 1 else at
    line = tokens[position].line
    while row.last == "LINE" and tokens[last].type != END and tokens[last].line == line:
        last += 1
    while row.last == "REST" and tokens[last].type not in STATEMENT_KINDS:
        last += 1
    return first, last, at


def _fits(word: str, token: Token) -> bool:
    """Tell whether a word of a pattern stands for a token."""
    if word in ("ANY", "WORD", "|"):
        return token == word if word == "|" else word == "ANY" or token.type != END
    kind = token.type
    if kind == BAD:
        kind = "QUOTE" if token in _QUOTES else kind
        kind = "DIGIT" if token.isdecimal() else kind
        kind = "LETTERS" if token[0].isalpha() or token[0] == "_" else kind
        kind = "UNSEEN" if not token.isprintable() else kind
        kind = "BLANK" if token.isspace() else kind
    if word == "TITLE":
        return kind == "NAME" and token[0].isupper()
    return any(
        kind in _SETS.get(option, {option})
        if option.isupper()
        else token == option or kind == words().get(option)
        for option in word.split("|")
    )


def _mended(tokens: Sequence[Token], first: int, last: int, text: str) -> Slip:
    """Put the words of a text in place of some tokens; those that stay at the ends are left as they are."""
    last -= tokens[last - 1].type == END
    if text == "#":
        return _commented(tokens, first)
    new, kept = list(lex(text)), 0
    while new and first < last and _alike(new[0], tokens[first]):
        first, kept = first + 1, cast(int, new.pop(0).end_pos)
    while new and first < last and _alike(new[-1], tokens[last - 1]):
        last, _ = last - 1, new.pop()
    old = tokens[first:last]
    start = span_of(old[0]).start if old else span_of(tokens[first - 1]).end
    end = span_of(old[-1]).end if old else start
    written = " " if not new and _apart(tokens, first, last) else ""
    if new:  # Keep the space before inserted words.
        written = text[new[0].start_pos if old else kept : new[-1].end_pos]
    placed = []
    for token in new:
        same = next((other for other in old if other == token), None)
        word = Token.new_borrow_pos(token.type, str(token), same or (old or tokens[first:])[0])
        if same is None:
            word.start_pos, word.end_pos = start, end
        placed.append(word)
    return Slip(None, first, last, placed, edits=(Edit(Span(start, end), written),))


def _alike(one: Token, other: Token) -> bool:
    return (one.type, str(one)) == (other.type, str(other))


def _commented(tokens: Sequence[Token], first: int) -> Slip:
    """Leave out all from a token up to the end of its line, and write `#` for the sign that it begins."""
    last, sign = first + 1, span_of(tokens[first])
    while tokens[last].line == tokens[first].line:
        if span_of(tokens[last]).start == sign.end and not tokens[last][0].isalnum():
            sign = Span(sign.start, span_of(tokens[last]).end)
        last += 1
    return Slip(None, first, last, [], edits=(Edit(sign, "#"),))


def _apart(tokens: Sequence[Token], first: int, last: int) -> bool:
    """Tell whether two words would become one without the tokens between them."""
    if not first:
        return False
    before, after = tokens[first - 1], tokens[last]
    gap = span_of(after).start - span_of(before).end
    width = span_of(tokens[last - 1]).end - span_of(tokens[first]).start
    return gap == width and before[-1:].isalnum() and after[:1].isalnum()


def _clause(tokens: Sequence[Token]) -> str:
    """Return the kind of the word that begins the clause or statement that these tokens end in."""
    for before, token in zip(reversed([None, *tokens[:-1]]), reversed(tokens), strict=False):
        # `alpha` and `rank` are values, too.
        word = before is not None and before.replace("_", "").isalnum()
        value = token.type in ("ALPHA", "RANK") and before is not None and not word
        value = value or (before is not None and before.type in ("SCALE", "GAIN", "SHARE"))
        value = value or (
            token.type == "INIT" and before is not None and before.type in ("RANK", "OUT")
        )
        if token.type in _table().such and not value:
            return token.type
    return "SPEC"


def _not_closed(tokens: Sequence[Token]) -> Token | None:
    """Find the last bracket that is open after these tokens, in their last statement."""
    depth = 0
    for token in reversed(tokens):
        depth += (token in (")", "}")) - (token in ("(", "{"))
        if depth < 0 or token.type in STATEMENT_KINDS:
            return token if depth < 0 else None
    return None
