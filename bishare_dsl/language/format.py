"""The formatter: one layout for every text, preserving all words and comments.

It writes the tokens in the order of the text, so it cannot change the meaning. Only keys move: `per ...`,
`A per ...` and `B per ...` come in this order, before the keys of other roles. A share is cut into
*pieces*, its head and its clauses; any other statement is one piece. A piece is cut into *units*, the
smallest parts of a
line: the first words of a clause, or one item of a list. A statement is written on one line if it fits
and has no inner comment, else with a piece or a unit per line. A comment inside a unit moves to its end.
Neighbouring params, and neighbouring shares with their clauses, are aligned.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from bishare_dsl.diagnostics.record import Record
from bishare_dsl.language.grammar import CLAUSES, DEFAULTS, IN_EXPRESSIONS
from bishare_dsl.language.read import parse_syntax
from bishare_dsl.language.syntax import Statement, Syntax, Words, span_of

WIDTH = 100
_INDENT = "    "
_TIGHT_AFTER = {"(", "..", "."}
_TIGHT_BEFORE = {")", ",", ";", ":", "..", "."}
_CLOSE = {")", "}"}
_KEY_ORDER = {None: 0, "A": 1, "B": 2}
# Rules of lists. The rules in the second row end with a bracket.
_LISTS = ("include", "exclude", "key", "init", "freeze", "gain", "places")
_BRACKETED = ("options", "arms")


def format_text(text: str | bytes, name: str = "<text>") -> str:
    """Format a text, with lines of at most 100 columns if possible.

    Spec and comments stay the same, and formatting the result again changes nothing.

    Raises:
        SpecError: every syntax error of the text, with its position.
    """
    syntax = parse_syntax(text, name)
    words = _words(syntax)
    lines: list[str] = []
    for group in _groups([_block(statement, words) for statement in syntax.statements]):
        aligned = _aligned(group)
        for block in group:
            changes = bool(lines) and block is group[0]
            _comments(lines, block.before, gap=changes)
            if block.after_blank if block.before else changes:
                lines.append("")
            lines += [aligned[block]] if block in aligned else _lines(block)
    _comments(lines, words[-1].before, gap=False)
    return "\n".join(lines).strip("\n") + "\n" if lines else ""


class _Comment(NamedTuple):
    """``# ...`` to the end of its line; ``after_blank`` if an empty line precedes it."""

    text: str
    after_blank: bool


class _Word(Record, frozen=False, eq=False):
    """A token with the space before it and its comments.

    ``before`` are the comments on lines above it. ``after`` is a comment at the end of its line, if it
    is the last token there.
    """

    text: str
    gap: str
    start: int
    after_blank: bool
    before: list[_Comment]
    after: list[_Comment]


def _words(syntax: Syntax) -> list[_Word]:
    """List the words of a text. The last word is empty and has the comments at the end."""
    trees = [tree for statement in syntax.statements for tree in statement.trees()]
    tight = {tree.meta.start_pos for tree in trees if tree.data in ("minus", "set")}
    # No space between the dots of an open range and its end.
    opening = {tree.meta.start_pos for tree in trees if tree.data == "range_to"}
    ended = {tree.meta.end_pos for tree in trees if tree.data == "range_from"}
    closing = {tree.meta.end_pos - 1 for tree in trees if tree.data == "set"}
    words: list[_Word] = []
    comments: list[_Comment] = []
    same_line = blank = joins = named = False
    for token in syntax.tokens:
        start = span_of(token).start
        if token.type == "SPACE":
            breaks = token.count("\n")
            same_line = same_line and not breaks
            blank = breaks > 1
            continue
        if token.type == "COMMENT":
            place = words[-1].after if same_line else comments
            place.append(_Comment(token.rstrip(), blank))
            blank = False
            continue
        if token in _CLOSE and words[-1].text in (",", ";"):
            last = words.pop()
            comments = [*last.before, *last.after, *comments]
        close = joins or start in closing or (token == "(" and named)
        close = close or (token in _TIGHT_BEFORE and start not in opening)
        words.append(_Word(str(token), "" if close else " ", start, blank, comments, []))
        comments = []
        same_line = True
        blank = False
        joins = (token in _TIGHT_AFTER and span_of(token).end not in ended) or start in tight
        named = token.type in ("NAME", "STRING") and token not in IN_EXPRESSIONS
    return words


class _Unit(Record, frozen=False, eq=False):
    """Words on one line. ``level`` is the indentation in a statement of several lines."""

    words: list[_Word]
    level: int

    @property
    def text(self) -> str:
        return _text(self.words)

    @property
    def before(self) -> list[_Comment]:
        return self.words[0].before

    @property
    def after(self) -> list[_Comment]:
        first, *rest = self.words
        return [*first.after, *(c for word in rest for c in (*word.before, *word.after))]


_Piece: TypeAlias = list[_Unit]


class _Block(Record, frozen=False, eq=False):
    """A formatted statement with the comments above it. ``words`` begin its clauses."""

    kind: str
    words: list[str]
    pieces: list[_Piece]
    before: list[_Comment]
    after_blank: bool

    @property
    def one_line(self) -> bool:
        units = [unit for piece in self.pieces for unit in piece]
        return _whole(units) and len(self.text) <= WIDTH

    @property
    def text(self) -> str:
        return "  ".join(_joined(piece).text for piece in self.pieces)

    @property
    def after(self) -> list[_Comment]:
        return self.pieces[-1][-1].after


def _text(words: Iterable[_Word]) -> str:
    return "".join(word.gap + word.text for word in words).strip(" ")


def _joined(piece: _Piece) -> _Unit:
    """Join the units of a piece into one line."""
    return _Unit([word for unit in piece for word in unit.words], piece[0].level)


def _whole(units: list[_Unit]) -> bool:
    """Return whether units can be joined because no comment is between them."""
    return not any(unit.before for unit in units[1:]) and not any(u.after for u in units[:-1])


def _comments(lines: list[str], comments: list[_Comment], gap: bool) -> None:
    for comment in comments:
        if lines and (comment.after_blank or (gap and comment is comments[0])):
            lines.append("")
        lines.append(comment.text)


def _groups(blocks: list[_Block]) -> list[list[_Block]]:
    """Group neighbouring statements of one kind without an empty line between them."""
    groups: list[list[_Block]] = []
    for block in blocks:
        blank = block.after_blank or any(comment.after_blank for comment in block.before)
        if not groups or blank or block.kind != groups[-1][-1].kind:
            groups.append([])
        groups[-1].append(block)
    return groups


def _block(statement: Statement, words: list[_Word]) -> _Block:
    parts = [statement, *statement.clauses]
    bounds = [*(part.start for part in parts), statement.end]
    cuts = [bisect_left(words, bound, key=lambda word: word.start) for bound in bounds]
    first = words[cuts[0]]
    before = first.before
    first.before = []
    pieces = [
        _piece(part.words, words[cuts[i] : cuts[i + 1]], level=min(i, 1))
        for i, part in enumerate(parts)
    ]
    keys = [i for i, part in enumerate(parts) if part.keyword == "per"]
    ordered = sorted(keys, key=lambda i: _KEY_ORDER.get(parts[i].role, len(_KEY_ORDER)))
    moved = dict(zip(keys, [pieces[i] for i in ordered], strict=True))
    pieces = [moved.get(i, piece) for i, piece in enumerate(pieces)]
    kind = "default" if statement.keyword in DEFAULTS else statement.keyword
    words_of = [str(clause.keyword) for clause in statement.clauses]
    return _Block(kind, words_of, pieces, before, first.after_blank)


def _piece(tree: Words, words: list[_Word], level: int) -> _Piece:
    """Cut a piece before the items of its lists and before the closing bracket."""
    starts: dict[int, int] = {}
    for part in tree.iter_subtrees():
        items = part.children[1:] if part.data == "arms" else part.children
        if part.data in (*_LISTS, *_BRACKETED):
            starts |= {span_of(item).start: level + 1 for item in items}
        if part.data == "exclude":  # Keep `except` with its first item.
            del starts[span_of(items[0]).start]
            starts[part.meta.start_pos] = level + 1
        if part.data in _BRACKETED:
            starts[part.meta.end_pos - 1] = level
    if len(starts) == 1 and level + 1 in starts.values():
        starts = {}
    piece = [_Unit([], level)]
    for word in words:
        if word.start in starts:
            piece.append(_Unit([], starts[word.start]))
        piece[-1].words.append(word)
    return piece


def _line(code: str, after: list[_Comment]) -> str:
    return "  ".join([code, *(comment.text for comment in after)])


def _lines(block: _Block) -> list[str]:
    """Write a statement without alignment: on one line, or with a piece per line, or a unit per line."""
    if block.one_line:
        return [_line(block.text, block.after)]
    lines: list[str] = []
    for piece in block.pieces:
        joined = _joined(piece)
        fits = _whole(piece) and len(_INDENT * joined.level + joined.text) <= WIDTH
        units = [joined] if fits else piece
        for unit in units:
            indent = _INDENT * unit.level
            lines += [indent + comment.text for comment in unit.before]
            lines.append(_line(indent + unit.text, unit.after))
    return lines


def _aligned(group: list[_Block]) -> dict[_Block, str]:
    """Write the statements of a group that are aligned in columns."""
    all_cells = {block: _cells(block) for block in group if block.one_line}
    rows = {block: cells for block, cells in all_cells.items() if cells}
    columns = sorted({column for row in rows.values() for column in row})
    widths = {column: max(len(row.get(column, "")) for row in rows.values()) for column in columns}
    lines = {}
    for block, row in rows.items():
        padded = [row.get(column, "").ljust(widths[column]) for column in columns]
        lines[block] = (" " if block.kind == "param" else "  ").join(padded).rstrip()
    if any(len(code) > WIDTH for code in lines.values()):
        return {}
    # Align the comments at the ends of neighbouring lines.
    wide = max((len(code) for block, code in lines.items() if block.after), default=0)
    return {
        block: _line(code.ljust(wide) if block.after else code, block.after)
        for block, code in lines.items()
    }


def _cells(block: _Block) -> dict[tuple[int, int], str]:
    """Return the cells of a statement by column, or an empty dict if it is not aligned.

    The columns are the clauses of `CLAUSES`, and the first, second, ... key of a share.
    """
    head, *clauses = map(_joined, block.pieces)
    if block.kind == "param":
        sign = [word.text for word in head.words].index("=")
        return {(-1, 0): _text(head.words[:sign]), (-1, 1): _text(head.words[sign:])}
    columns = [
        (CLAUSES.index(word), block.words[:i].count(word)) for i, word in enumerate(block.words)
    ]
    if block.kind != "share" or columns != sorted(columns):
        return {}
    return {(-1, 0): head.text, **dict(zip(columns, (c.text for c in clauses), strict=True))}
