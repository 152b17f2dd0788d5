"""The formatter: one layout for every text, with each word and each comment of the text kept.

It lays out tokens in the order of the text (only `A per ...` moves before `B per ...`), so it cannot change
what a text says. A statement is cut into *units*, the smallest pieces that a line may consist of (a
clause's first word, one item of a list). It is written on one line if it fits and no comment stands inside
it, else a clause or an item a line. A comment inside a unit moves to the unit's end. Params, and shares with
their clauses, are aligned where they stand together.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from bishare_dsl.language.grammar import CLAUSES, DEFAULTS, IN_EXPRESSIONS
from bishare_dsl.language.read import parse_syntax
from bishare_dsl.language.syntax import Statement, Syntax, span_of

WIDTH = 100
_INDENT = "    "
_TIGHT_AFTER = {"(", ".."}
_TIGHT_BEFORE = {")", ",", ";", ":", ".."}
_OPEN, _CLOSE = {"(", "{"}, {")", "}"}
# Lists, and how many words stand before the first item.
_LISTS = {
    "target": 1,
    "where": 1,
    "per": 1,
    "A": 2,
    "B": 2,
    "init": 1,
    "freeze": 1,
    "gain": 1,
    "let": 3,
}


def format_text(text: str | bytes, name: str = "<text>") -> str:
    """Give a text its one layout: same spec, same comments, lines of at most 100 columns where possible.

    Formatting what this returns changes nothing.

    Raises:
        SpecError: the text cannot be read; every problem, each with its place.
    """
    return layout(parse_syntax(text, name))


@dataclass(slots=True, eq=False)
class _Comment:
    """``# ...`` to the end of its line; ``after_blank`` where an empty line stands above it."""

    text: str
    start: int
    after_blank: bool


@dataclass(slots=True, eq=False)
class _Word:
    """A token with its comments: those on lines of their own above it (``before``), and the one at the end of
    its line if it is the last token there (``after``).

    ``joins`` is ``left`` or ``right`` where a brace or a minus stands close to its neighbour.
    """

    kind: str
    text: str
    start: int
    after_blank: bool
    joins: str
    before: list[_Comment]
    after: _Comment | None = None


def _words(syntax: Syntax) -> list[_Word]:
    """List the words of a text, the last one empty: it has the comments at the end."""
    joins = {}
    for statement in syntax.statements:
        for tree in statement.all_words():
            for part in tree.iter_subtrees():
                if part.data in ("negative", "set"):
                    joins[part.meta.start_pos] = "right"
                if part.data == "set":
                    joins[part.meta.end_pos - 1] = "left"
    words: list[_Word] = []
    comments: list[_Comment] = []
    same_line = blank = False
    for token in syntax.tokens:
        start = span_of(token).start
        if token.type == "SPACE":
            breaks = token.count("\n")
            same_line = same_line and not breaks
            blank = breaks > 1
        elif token.type == "COMMENT":
            comment = _Comment(token.rstrip(), start, blank)
            if same_line and words:
                words[-1].after = comment
            else:
                comments.append(comment)
            blank = False
        else:
            joined = joins.get(start, "")
            words.append(_Word(token.type, str(token), start, blank, joined, comments))
            comments, same_line, blank = [], True, False
    return words


@dataclass(slots=True, eq=False)
class _Unit:
    """Tokens that stand on one line; ``level`` says how far in, where the statement is broken."""

    tokens: list[_Word]
    level: int
    before: list[_Comment] = field(default_factory=list)
    after: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return _joined(self.tokens)


@dataclass(slots=True, eq=False)
class _Piece:
    """A part that is written on one line, or a unit a line: a clause, or a whole statement but a share."""

    keyword: str
    units: list[_Unit]

    @property
    def flat(self) -> str:
        return _joined([token for unit in self.units for token in unit.tokens])

    @property
    def commented(self) -> bool:
        """Whether a comment stands inside, so that one line will not do."""
        return _inside(self.units)


@dataclass(slots=True, eq=False)
class _Block:
    """A statement as it will be written."""

    kind: str
    pieces: list[_Piece]
    after_blank: bool
    before: list[_Comment]

    @property
    def one_line(self) -> bool:
        units = [unit for piece in self.pieces for unit in piece.units]
        return not _inside(units) and len(self.flat) <= WIDTH

    @property
    def flat(self) -> str:
        return "  ".join(piece.flat for piece in self.pieces)

    @property
    def after(self) -> list[str]:
        return self.pieces[-1].units[-1].after


def layout(syntax: Syntax) -> str:
    """Write a tree's tokens and comments."""
    words = _words(syntax)
    blocks = [_block(statement, words) for statement in syntax.statements]
    lines: list[str] = []
    for group in _groups(blocks):
        aligned = _aligned(group)
        for block in group:
            changes = bool(lines) and block is group[0]
            _comments(lines, block.before, gap=changes)
            if block.after_blank if block.before else changes:
                lines.append("")
            lines += aligned.get(id(block)) or _broken(block)
    _comments(lines, words[-1].before, gap=False)
    return "\n".join(lines).strip("\n") + "\n" if lines else ""


def _comments(lines: list[str], comments: list[_Comment], gap: bool) -> None:
    for comment in comments:
        if lines and (comment.after_blank or (gap and comment is comments[0])):
            lines.append("")
        lines.append(comment.text)


def _groups(blocks: list[_Block]) -> Iterator[list[_Block]]:
    """Yield statements of one kind with no empty line between them."""
    group: list[_Block] = []
    for block in blocks:
        blank = block.after_blank or any(comment.after_blank for comment in block.before)
        if group and (blank or block.kind != group[-1].kind):
            yield group
            group = []
        group.append(block)
    if group:
        yield group


def _start(token: _Word) -> int:
    return token.start


def _block(statement: Statement, tokens: list[_Word]) -> _Block:
    first_token = bisect_left(tokens, statement.start, key=_start)
    inside = tokens[first_token : bisect_left(tokens, statement.end, key=_start)]
    kind = "default" if statement.keyword in DEFAULTS else statement.keyword
    if kind == "share":
        starts = {clause.start for clause in statement.clauses}
        parts: list[list[_Word]] = [[]]
        for token in inside:
            if token.start in starts:
                parts.append([])
            parts[-1].append(token)
        keys = [i for i, part in enumerate(parts) if part[0].text in ("A", "B")]
        if len(keys) == 2 and parts[keys[0]][0].text == "B":
            parts[keys[0]], parts[keys[1]] = parts[keys[1]], parts[keys[0]]
    else:
        parts = [inside]
    pieces = [_piece(part, 1 if i else 0) for i, part in enumerate(parts)]
    first = pieces[0].units[0]
    before, first.before = first.before, []
    return _Block(kind, pieces, inside[0].after_blank, before)


def _piece(tokens: list[_Word], level: int) -> _Piece:
    keyword = tokens[0].text
    units = [
        _unit(part, level + inner) for part, inner in _cut(keyword, _without_last_commas(tokens))
    ]
    return _Piece(keyword, units)


def _unit(tokens: list[_Word], level: int) -> _Unit:
    inner = [comment for token in tokens[1:] for comment in token.before]
    ends = [token.after for token in tokens if token.after]
    after = [comment.text for comment in sorted(inner + ends, key=lambda comment: comment.start)]
    return _Unit(tokens, level, list(tokens[0].before), after)


def _without_last_commas(tokens: list[_Word]) -> list[_Word]:
    """Leave out each comma or semicolon before a closing bracket; its comments go to the bracket."""
    kept: list[_Word] = []
    for token in tokens:
        if token.text in _CLOSE and kept and kept[-1].text in (",", ";"):
            dropped = kept.pop()
            inner = (*dropped.before, *((dropped.after,) if dropped.after else ()))
            token = replace(token, before=[*inner, *token.before])
        kept.append(token)
    return kept


def _cut(keyword: str, tokens: list[_Word]) -> Iterator[tuple[list[_Word], int]]:
    """Yield a piece's units, and how much further in each stands than the piece."""
    if keyword in _LISTS:
        yield from _items(tokens, _LISTS[keyword], ",", 0)
    elif keyword == "replace" and tokens[1].text == "let":
        yield from _items(tokens, 1 + _LISTS["let"], ",", 0)
    elif keyword == "via" and len(tokens) > 2:
        yield from _items(tokens, 3, ",", 1)
    elif keyword == "rank" and tokens[1].text == "match":
        # The subject may have brackets of its own: the cases are in the last ones that open outside.
        depth = opening = 0
        for i, token in enumerate(tokens):
            if token.text in _OPEN:
                opening = i if depth == 0 else opening
                depth += 1
            elif token.text in _CLOSE:
                depth -= 1
        yield from _items(tokens, opening + 1, ";", 1)
    else:
        yield tokens, 0


def _items(
    tokens: list[_Word], head: int, separator: str, closing: int
) -> Iterator[tuple[list[_Word], int]]:
    """Yield the first ``head`` tokens, an item up to each ``separator``, and the ``closing`` last tokens."""
    body = tokens[head : len(tokens) - closing]
    items: list[list[_Word]] = [[]]
    depth = 0
    for token in body:
        if token.text == "except" and depth == 0 and items[-1]:
            items.append([])
        items[-1].append(token)
        depth += (token.text in _OPEN) - (token.text in _CLOSE)
        if token.text == separator and depth == 0:
            items.append([])
    items = [item for item in items if item]
    if len(items) <= 1 and not closing:
        yield tokens, 0
        return
    yield tokens[:head], 0
    for item in items:
        yield item, 1
    if closing:
        yield tokens[len(tokens) - closing :], 0


def _inside(units: list[_Unit]) -> bool:
    return any(unit.before for unit in units[1:]) or any(unit.after for unit in units[:-1])


def _joined(tokens: list[_Word]) -> str:
    """Join tokens with the spaces that belong between them."""
    words: list[str] = []
    previous: _Word | None = None
    for token in tokens:
        if previous is not None and not _close(previous, token):
            words.append(" ")
        words.append(token.text)
        previous = token
    return "".join(words)


def _close(left: _Word, right: _Word) -> bool:
    if left.text in _TIGHT_AFTER or left.joins == "right":
        return True
    if right.text in _TIGHT_BEFORE or right.joins == "left":
        return True
    named = left.kind in ("NAME", "STRING") and left.text not in IN_EXPRESSIONS
    return right.text == "(" and named


def _line(code: str, after: list[str]) -> str:
    return f"{code}  {'  '.join(after)}" if after else code


def _broken(block: _Block) -> list[str]:
    """Write a statement by itself: on one line, else a clause a line, else an item a line."""
    if block.one_line:
        return [_line(block.flat, block.after)]
    lines: list[str] = []
    for piece in block.pieces:
        indent = _INDENT * piece.units[0].level
        if not piece.commented and len(indent + piece.flat) <= WIDTH:
            lines += [indent + comment.text for comment in piece.units[0].before]
            lines.append(_line(indent + piece.flat, piece.units[-1].after))
            continue
        for unit in piece.units:
            indent = _INDENT * unit.level
            lines += [indent + comment.text for comment in unit.before]
            lines.append(_line(indent + unit.text, unit.after))
    return lines


def _aligned(group: list[_Block]) -> dict[int, list[str]]:
    """Lay out those statements of a group that stand in columns: lines by the statement's id."""
    rows = [(block, _cells(block)) for block in group if block.one_line]
    rows = [(block, cells) for block, cells in rows if cells]
    columns = [name for name in ("", "=", *CLAUSES) if any(name in cells for _, cells in rows)]
    widths = {name: max(len(cells[name]) for _, cells in rows if name in cells) for name in columns}
    made = {}
    for block, cells in rows:
        gap = " " if "=" in cells else "  "
        code = gap.join(cells.get(name, "").ljust(widths[name]) for name in columns).rstrip()
        made[id(block)] = code
    if any(len(code) > WIDTH for code in made.values()):
        return {}
    # Comments at the ends of neighbouring lines stand in one column.
    wide = max((len(made[id(block)]) for block, _ in rows if block.after), default=0)
    return {
        id(block): [
            _line(made[id(block)].ljust(wide) if block.after else made[id(block)], block.after)
        ]
        for block, _ in rows
    }


def _cells(block: _Block) -> dict[str, str]:
    """Tell what stands in which column: nothing for a statement that is not aligned."""
    if block.kind == "param":
        tokens = block.pieces[0].units[0].tokens
        head = 3 if tokens[0].text == "replace" else 2
        return {"": _joined(tokens[:head]), "=": _joined(tokens[head:])}
    if block.kind != "share":
        return {}
    # `A per layer  B per module` begins in the column of `per layer`.
    words = ["per" if piece.keyword == "A" else piece.keyword for piece in block.pieces[1:]]
    if words != sorted(words, key=CLAUSES.index):
        return {}
    return {"": block.pieces[0].flat} | {
        word: piece.flat for word, piece in zip(words, block.pieces[1:], strict=True)
    }
