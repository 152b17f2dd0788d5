"""Recognise known mistakes with the table `grammars/slips.txt`: the intended text, and how to continue."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence, Set
from functools import cache, lru_cache
from typing import NamedTuple, cast
from unicodedata import combining, normalize

from lark import Token

from bishare_dsl.diagnostics import Edit, Span, advise, nearest
from bishare_dsl.diagnostics.words import english
from bishare_dsl.language.grammar import (
    BAD,
    CLAUSE_KINDS,
    END,
    OPERATORS,
    SINGLE,
    STATEMENT_KINDS,
    Word,
    lex,
    spelled,
    words,
)
from bishare_dsl.language.syntax import span_of
from bishare_dsl.resources import shipped_specs, table
from bishare_dsl.spec.expression import ATTRIBUTES, FUNCTIONS

_SETS: dict[str, Set[str]] = {
    "CLAUSE": CLAUSE_KINDS,
    "STATEMENT": STATEMENT_KINDS,
    "NUMBER": {"INT", "FLOAT"},
    "COMPARISON": {"LT", "LE", "GT", "GE", "EQ", "NE"},
    "ITEM": {"NAME", "STRING", "INT", "FLOAT", "PATH", "KIND", "PARENT"},
    "OPERATOR": {*OPERATORS, "COMMA", "EQUAL", "COLON", "LPAR", "RPAR", "LBRACE", "RBRACE"},
    BAD: {BAD, "QUOTE", "DIGIT", "LETTERS", "UNSEEN", "BLANK"},
}
_KEYS = frozenset({"layer", "kind", "module", "parent", "model", "expert", "path", "tower"})
_QUOTES = tuple("'`´‘’‚“”„«»")
# Letters of other alphabets that look like Latin letters; NFKC replaces wide letters.
_LOOKALIKES = str.maketrans(
    "авгеікмнопрстухһѕјАВЕІКМНОРСТХЅЈαβγεικνορτυχΑΒΕΗΙΚΜΝΟΡΤΥΧΖı",
    "abreikmhonpctyxhsjABEIKMHOPCTXSJabyeikvoptuxABEHIKMNOPTYXZi",
)
_SINGLE_KINDS = {word.upper() for word in SINGLE}
# How many words of a line to read again when trying a correction.
_REREAD_TOKENS = 64
# How many words after a correction must be readable.
_AHEAD = 3
# A name follows the first, and a number the second.
_NAMES = ("SPEC", "USE", "PARAM", "LET", "SHARE", "REPLACE")
_VALUES = ("RANK", "ALPHA", "SCALE", "DROPOUT", "PER")
# A clause with one of these may name modules, too.
_CHOOSE = ("MATCH", "IF", "EQ", "NE", "IN")
_COMPARED = {*OPERATORS, "NAME", "STRING"} - {"AND", "OR", "IF"}


class Row(NamedTuple):
    """A row of the table, whose header explains the columns.

    ``first`` precedes the words, and ``at`` is the index of the word where reading stops. ``instead`` has
    the texts to write in place of the words, each with the names of `_Near` in it.
    """

    first: list[str]
    words: list[str]
    at: int
    last: str
    instead: list[tuple[str, list[str]]] | None
    arrow: str
    help: str


class Table(NamedTuple):
    """The known mistakes, with the words of their patterns.

    ``such`` has an example of each clause and statement, by kind.
    """

    known: list[Row]
    words: set[str]
    such: dict[str, str]


@cache
def _table() -> Table:
    """Read the table."""
    slips = Table([], {*words()}, {})
    for pattern, said in table("slips.txt"):
        pattern, *mend = re.split(r" (=>[?>]?)(?: |$)", pattern)
        named = pattern.split(" ")
        ahead = 2 if "..." in named or named[0] in ("only", "inside") else named[0] == "NEWLINE"
        last = named.pop() if named[-1] in ("LINE", "REST") else ""
        if named[1:] == ["...", "@ANY"]:
            slips.such[words()[named[0]]] = said
        else:
            arrow, texts = mend or ("", None)
            instead = None
            if texts is not None:
                instead = [(text, re.findall(r"{([a-z]+)}", text)) for text in texts.split(" | ")]
            at = next(i for i, word in enumerate(named[ahead:]) if word[0] == "@")
            row = Row(named[:ahead], named[ahead:], at, last, instead, arrow, said)
            slips.known.append(row)
            slips.words.update(option for word in row.words for option in _plain(word).split("|"))
    slips.words.update(english())
    return slips


def _rows_for(token: Token) -> list[Row]:
    """Return the rows whose mistake can be at a token."""
    # Words that no row has fit the same rows, but for a large first letter.
    known = token.type == BAD or token.lower() in _table().words or token in _table().words
    return _rows_at(token.type, str(token) if known else f"{token[:1]}\0")


@lru_cache(maxsize=256)
def _rows_at(kind: str, text: str) -> list[Row]:
    plain = ((row, _plain(row.words[row.at])) for row in _table().known)
    return [row for row, word in plain if word == "SAME" or _fits(word, kind, text)]


class Slip(NamedTuple):
    """A remedy for a mistake: read ``tokens`` instead of the tokens from ``first`` up to ``last``.

    Without ``tokens``, reading continues at the next clause or statement. ``at`` is the token to point at, by
    default the token where reading stopped. ``edits`` correct the text.
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
    """Find the mistake at a token in the table, at a position that allows the kinds in ``allowed``.

    ``reads`` returns whether tokens can be read from a position on, including a token that may follow
    them. Its last argument also requires that a share that ends there is complete.
    """
    given = _Near(tokens, position, allowed)
    may_begin = {*allowed, "NAME"}
    far = min(position + _REREAD_TOKENS, len(tokens) - 1)
    cut_off = END not in allowed and tokens[position].line != tokens[position - 1].line
    ends = next((i for i in range(position + 1, far) if tokens[i].line != tokens[i - 1].line), far)
    for row in _rows_for(tokens[position]):
        if (where := _place(row, tokens, position)) is None:
            continue
        if not _begins(row.first, tokens, position, allowed):
            continue
        first, last, at = where
        count = len(row.words)
        named = [*tokens[first : first + count], "".join(tokens[first + count : last])]
        given.update((str(i), word) for i, word in enumerate(named))
        if row.instead is None:
            return Slip(_filled(row.help, given), at=at)
        if row.arrow != "=>" and cut_off:
            continue
        whole = row.arrow != "=>"
        for instead, names in row.instead:
            if not all(given[name] for name in names):
                continue
            text = given["new"] = _filled(instead, given)
            slip = _mended(tokens, first, last, text)
            after = [*tokens[slip.last : max(ends, slip.last + 1 - whole) + whole]]
            if whole:
                begins = [*(slip.tokens or ()), *after][0].type in may_begin
                if _said_elsewhere(slip, tokens, first, last) or (
                    slip.first == position and not begins
                ):
                    continue
            else:  # Further mistakes, such as the same one, may follow.
                keyword = words().get(text.partition(" ")[0]) in CLAUSE_KINDS | STATEMENT_KINDS
                after = after[: 1 if keyword else _AHEAD]
                mistakes = (i for i, token in enumerate(after) if _is_mistake(token, named))
                after = after[: next(mistakes, _AHEAD)]
            if re.fullmatch(r"use \w+", text) and text[4:] not in shipped_specs():
                continue
            if reads(slip.first, [*(slip.tokens or ()), *after], whole):
                said, edits = _filled(row.help, given), () if row.last == "REST" else slip.edits
                if row.arrow == "=>?":
                    return Slip(said, at=at)
                return slip._replace(help=said, at=at, edits=edits)
    return None


def _is_mistake(token: Token, old: Sequence[str]) -> bool:
    """Return whether a token after a mistake, of the words ``old``, may be another one."""
    again = token in old and not token.isidentifier()
    return token.type == BAD or token in (",", ":", "=", ";") or again


def _said_elsewhere(slip: Slip, tokens: Sequence[Token], first: int, last: int) -> bool:
    """Return whether a slip would add a statement that the rest of the text already has."""
    new = {token.type for token in slip.tokens or ()} & _SINGLE_KINDS
    return bool(new) and any(t.type in new for t in (*tokens[:first], *tokens[last:]))


def unknown_slip(tokens: Sequence[Token], position: int) -> Slip:
    """Describe a mistake that is not in the table by the tokens allowed there."""
    token, before = tokens[position], tokens[:position]
    if (opened := _not_closed(before)) and token.type in STATEMENT_KINDS | CLAUSE_KINDS:
        return Slip(f"the `{opened}` of line {opened.line} is not closed", at=opened)
    return Slip(_table().such[_clause(before)])


def is_sensible(tokens: Sequence[Token], first: int, declared: Set[str]) -> bool:
    """Return whether no name of a clause, from ``first`` on, is a word of English, or stands undeclared in
    place of a number."""
    known, kind = declared | {*ATTRIBUTES, *FUNCTIONS}, tokens[0].type
    chosen = any(token.type in _CHOOSE for token in tokens)
    around = zip([tokens[0], *tokens], tokens, [*tokens[1:], tokens[0]], strict=False)
    for before, token, after in [*around][first - (first > 0 and kind == "PER") :]:
        if token.type in CLAUSE_KINDS | STATEMENT_KINDS and before.type not in OPERATORS:
            kind, chosen = token.type, False
        compared = {before.type, after.type} & _COMPARED
        selects = kind in ("WHERE", "TARGET", "LET") and token.type != "IN"
        if token in ATTRIBUTES and selects and not compared:
            return False
        if token.type != "NAME" or token in known or before.type in _NAMES or kind == "VIA":
            continue
        if token.lower() in english() or after.type in _SETS["COMPARISON"]:
            return False
        if declared and not chosen and kind in _VALUES:
            return False
    return True


def _filled(text: str, given: _Near) -> str:
    """Fill the placeholders in a text of the table."""
    return re.sub(r"\{(\w+)\}", lambda place: given[place[1]], text)


class _Near(dict[str, str]):
    """Values of placeholders, computed on demand from the token where reading stopped and its neighbours."""

    def __init__(self, tokens: Sequence[Token], position: int, allowed: Set[str]) -> None:
        self.token, self.allowed = tokens[position], allowed
        self.before = tokens[position - 1] if position else None
        self.number = tokens[max(0, position - 2) : position]
        first = position - 1 - (self.before == ",")
        self.around = tokens[max(0, first) : first + 3]

    def __missing__(self, name: str) -> str:
        word: str = getattr(self, f"_{name}")()
        self[name] = word
        return word

    def _small(self) -> str:
        return self.token.lower()

    def _near(self) -> str:
        begins = self.before is None or self.before.line != self.token.line
        kinds = self.allowed - (set() if begins else STATEMENT_KINDS)
        listed = [word for kind in kinds if (word := spelled(kind)) and len(word) > 2]
        near = nearest(self.token, listed) or ""
        return near.split("`")[1] if near.startswith("did you mean") else ""

    def _nearer(self) -> str:
        named = self.before is not None and self.before.type == "NAME"
        return _nearest_keyword(str(self.before)) if named else ""

    def _split(self) -> str:
        """Return the keyword that a name begins with, and the rest: `rank 8` for `rank8`."""
        for kind in () if self._called() else sorted(self.allowed):
            word = spelled(kind)
            if word and len(word) > 2 and self.token.startswith(word):
                rest = self.token[len(word) :].lstrip("_")
                begins = kind in ("TARGET", "SHARE", "PARAM") and self.token.column == 1
                if rest.isdigit() or rest in _KEYS or (begins and len(rest) > 1):
                    return f"{word} {rest}"
        return ""

    def _joined(self) -> tuple[str, ...]:
        """Return the words before and after the token, if there is no space between them."""
        ends = [span_of(token) for token in self.around]
        near = len(ends) == 3 and ends[0].end == ends[1].start and ends[1].end == ends[2].start
        return (self.around[0], self.around[2]) if near else ()

    def _glued(self) -> str:
        return "_".join(self._joined())

    def _thousands(self) -> str:
        joined = self._joined()
        return "".join(joined) if joined and len(joined[1]) == 3 and joined[0] != "0" else ""

    def _decimal(self) -> str:
        return ".".join(self._joined())

    def _starred(self) -> str:
        pattern = self.token.replace("%", "*")
        return pattern if "*" in pattern else ""

    def _called(self) -> str:
        return advise("keyword", self.token) or ""

    def _latin(self) -> str:
        plain = normalize("NFKD", self.token).translate(_LOOKALIKES)
        latin = "".join(letter for letter in plain if not combining(letter))
        named = latin != self.token and re.fullmatch(r"[A-Za-z_]\w*", latin, re.ASCII)
        return latin if named else ""

    def _odd(self) -> str:
        return f"U+{ord(next(letter for letter in self.token if not letter.isascii())):04X}"

    def _percent(self) -> str:
        number = self.number and self.number[0].type in _SETS["NUMBER"]
        return f"{float(self.number[0]) / 100:g}" if number else ""


@lru_cache(maxsize=1024)
def _nearest_keyword(name: str) -> str:
    advice = nearest(name, [word for word in words() if len(word) > 2], few=0)
    return advice.split("`")[1] if advice else ""


def _begins(
    first: Sequence[str], tokens: Sequence[Token], position: int, allowed: Set[str]
) -> bool:
    """Return whether the condition before the words of a row holds."""
    match first:
        case ["NEWLINE"]:
            return _begins_line(tokens, position)
        case ["only", kind]:
            return {kind} <= allowed <= {kind, "LPAR", *OPERATORS}
        case ["inside", statement]:
            begun = [str(token) for token in tokens[:position] if token.type in STATEMENT_KINDS]
            return begun[-1:] == [statement]
        case [clause, "..."]:
            return spelled(_clause(tokens[:position])) in clause.split("|")
    return True


def _place(
    row: Row, tokens: Sequence[Token], position: int
) -> tuple[int, int, Token | None] | None:
    """Match the words of a row around a position: their begin and end, and the token to point at."""
    first = position - row.at
    last, at = first + len(row.words), None
    if first < 0 or last > len(tokens):
        return None
    for i, word in enumerate(row.words, first):
        token, plain = tokens[i], _plain(word)
        elsewhere = i > first and token.line != tokens[i - 1].line
        if elsewhere and plain not in ("ANY", "STATEMENT", "NEXT"):
            return None
        if plain == "SAME":
            if not i or token != tokens[i - 1]:
                return None
        elif i != position and not _fits(plain, token.type, str(token)):
            return None
        at = token if word[0] == "^" and len(word) > 1 else at
    line = tokens[position].line
    while row.last == "LINE" and tokens[last].type != END and tokens[last].line == line:
        last += 1
    while row.last == "REST" and tokens[last].type not in STATEMENT_KINDS:
        last += 1
    return first, last, at


def _plain(word: str) -> str:
    """Return a word of a pattern without its mark."""
    return word[1:] if len(word) > 1 and word[0] in "@^" else word


@cache
def _options(word: str) -> tuple[Set[str], Set[str], Set[str]]:
    """Return the kinds of token, texts and kinds of name that a word of a pattern allows."""
    options = {word} if word == "|" else {*word.split("|")}
    names = options & {"THING", "NEXT", "ENGLISH", "TITLE"}
    kinds = {option for option in options - names if option.isupper()}
    texts = options - names - kinds
    known = {words()[text] for text in texts & words().keys()}
    return known.union(*(_SETS.get(kind, {kind}) for kind in kinds)), texts, names


@lru_cache(maxsize=4096)
def _fits(word: str, kind: str, text: str) -> bool:
    """Return whether a word of a pattern matches a token."""
    if kind == BAD:
        kind = "QUOTE" if text in _QUOTES else kind
        kind = "DIGIT" if text.isdecimal() else kind
        kind = "LETTERS" if text[0].isalpha() or text[0] == "_" else kind
        kind = "UNSEEN" if not text.isprintable() else kind
        kind = "BLANK" if text.isspace() else kind
        kind = "BROKEN" if len(text) > 1 and (text[0].isdecimal() or text[0] == '"') else kind
    if word in ("ANY", "WORD"):
        return word == "ANY" or kind not in {END, "BROKEN", *_SETS[BAD]}
    if word == "TERM":
        others = {END, "NOT", "BROKEN", *_SETS[BAD], *OPERATORS}
        return kind not in others and text.lower() not in english()
    kinds, texts, names = _options(word)
    if kind in kinds or text in texts:
        return True
    if kind == "STRING":
        return bool({"THING", "NEXT"} & names)
    if kind != "NAME" or not (names or texts):
        return False
    if text.lower() in english():
        return "ENGLISH" in names or text.lower() in texts
    title = "TITLE" in names and text[0].isupper()
    return title or text.lower() in texts or bool({"THING", "NEXT"} & names)


@lru_cache(maxsize=1024)
def _lexed(text: str) -> Sequence[Token]:
    return tuple(lex(text))


def _mended(tokens: Sequence[Token], first: int, last: int, text: str) -> Slip:
    """Replace tokens by the words of a text, leaving equal tokens at the ends unchanged."""
    last -= tokens[last - 1].type == END
    if text == "#":
        return _commented(tokens, first)
    new, kept, begin = [*_lexed(text)], 0, first
    while new and first < last and _alike(new[0], tokens[first]):
        first, kept = first + 1, cast(int, new.pop(0).end_pos)
    while new and first < last and _alike(new[-1], tokens[last - 1]):
        last, _ = last - 1, new.pop()
    old = tokens[first:last]
    start = span_of(old[0]).start if old else span_of(tokens[first - 1]).end
    end = span_of(old[-1]).end if old else start
    if first and not new and tokens[last].line != tokens[first].line == tokens[first - 1].line:
        start = span_of(tokens[first - 1]).end
    written = " " if not new and _apart(tokens, first, last) else ""
    if new:  # Preserve the space before inserted words.
        written = text[new[0].start_pos if old else kept : new[-1].end_pos]
        if not old and first == begin and _begins_line(tokens, first):
            start = end = span_of(tokens[first]).start
            written += " "
        if first and span_of(tokens[first - 1]).end == start:
            written = " " * (tokens[first - 1][-1:] + written[0]).isalnum() + written
        if span_of(tokens[last]).start == end:
            written += " " * (written[-1] + (tokens[last] or " ")[0]).isalnum()
    placed = []
    for token in new:
        same = next((other for other in old if other == token), None)
        word = Word.new_borrow_pos(token.type, str(token), same or (old or tokens[first:])[0])
        if same is None:
            word.start_pos, word.end_pos = start, end
        placed.append(word)
    return Slip(None, first, last, placed, edits=(Edit(Span(start, end), written),))


def _begins_line(tokens: Sequence[Token], position: int) -> bool:
    return not position or tokens[position - 1].line != tokens[position].line


def _alike(one: Token, other: Token) -> bool:
    return (one.type, str(one)) == (other.type, str(other))


def _commented(tokens: Sequence[Token], first: int) -> Slip:
    """Turn the rest of a line, from another comment sign or a word on, into a comment with `#`."""
    last, sign = first + 1, span_of(tokens[first])
    written = "# " if tokens[first][0].isalnum() else "#"
    sign = Span(sign.start, sign.start) if written == "# " else sign
    while tokens[last].line == tokens[first].line:
        if span_of(tokens[last]).start == sign.end and not tokens[last][0].isalnum():
            sign = Span(sign.start, span_of(tokens[last]).end)
        last += 1
    return Slip(None, first, last, [], edits=(Edit(sign, written),))


def _apart(tokens: Sequence[Token], first: int, last: int) -> bool:
    """Return whether two words would join without the tokens between them."""
    if not first:
        return False
    before, after = tokens[first - 1], tokens[last]
    gap = span_of(after).start - span_of(before).end
    width = span_of(tokens[last - 1]).end - span_of(tokens[first]).start
    return gap == width and before[-1:].isalnum() and after[:1].isalnum()


def _clause(tokens: Sequence[Token]) -> str:
    """Return the kind of the first word of the last clause or statement in these tokens."""
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
    """Return the last open bracket in the last statement of these tokens, or None."""
    depth = 0
    for token in reversed(tokens):
        depth += (token in (")", "}")) - (token in ("(", "{"))
        if depth < 0 or token.type in STATEMENT_KINDS:
            return token if depth < 0 else None
    return None
