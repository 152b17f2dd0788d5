"""Mistakes that are known: what was meant, and how reading goes on behind them."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import NamedTuple

from lark import Token

from bishare_dsl.diagnostics import Edit, Span, nearest
from bishare_dsl.language.grammar import (
    BAD,
    CLAUSE_KINDS,
    END,
    STATEMENT_KINDS,
    is_keyword,
    spelled,
    words,
)
from bishare_dsl.language.syntax import span_of
from bishare_dsl.resources import shipped_specs

_DORA = "there is no DoRA here; nearest is a learned scale of each output, `gain out init 1`"
# Words of PEFT and what they are here.
_ELSEWHERE = {
    "r": "it is called `rank`",
    "lora_r": "it is called `rank`",
    "lora_alpha": "it is called `alpha`",
    "lora_dropout": "it is called `dropout`",
    "target_modules": "it is called `target`",
    "use_rslora": "it is `scale alpha / sqrt(rank)`",
    "rslora": "it is `scale alpha / sqrt(rank)`",
    "layers_to_transform": "it is `where layer in {0, 2}`",
    "init_lora_weights": "it is `init A kaiming_uniform, B zeros`; PiSSA's is `init A svd, B svd`",
    "exclude_modules": "it is `except`, behind what `target` names",
    "lr": "a spec says nothing of training: `bishare train --learning_rate 1e-4` does",
    **dict.fromkeys(("dora", "use_dora"), _DORA),
    "bias": "`train biases`, a statement of its own, trains the biases",
    "modules_to_save": "it is `train`, a statement of its own: `train lm_head, norms`",
}
# What a clause or statement looks like, where nothing better is known.
_SUCH = {
    "SPEC": "`spec mine`",
    "USE": '`use "lora"`',
    "REPLACE": "`replace param r = 4`",
    "IF": "`rank 8 if layer > 15 else 2`",
    "PARAM": "`param r = 8`",
    "LET": "`let attention = q_proj, k_proj, v_proj`",
    "TARGET": "`target q_proj, v_proj`",
    "TRAIN": "`train norms, lm_head`",
    "SHARE": "`share local per module rank 8`",
    "WHERE": "`where layer in 0..15 and not down_proj`",
    "PER": "`per module`, `per layer` or `per layer // 4, kind`; `per model` stands alone",
    "RANK": "`rank 8`",
    "MATCH": "`match kind { q_proj, k_proj: 4; else: 2 }`",
    "VIA": "`via SS` or `via KE(size = 256)`",
    "ALPHA": "`alpha 16`",
    "SCALE": "`scale alpha / rank`",
    "DROPOUT": "`dropout 0.05`",
    "INIT": "`init A normal, B zeros`",
    "FREEZE": "`freeze A`",
    "GAIN": "`gain out init 0` or `gain rank init 1, out init 0`",
    "START": "`start nonzero`",
}
_POWER = "there is no power: multiply, as in `2 * 2`"
_SIGNS = {
    "&": "both of two conditions: `q_proj and layer < 8`",
    "|": "one of two conditions: `q_proj or v_proj`",
    "!": "the opposite of a condition: `not q_proj`, or `layer != 3`",
    "^": _POWER,
}
# What is wrong with a token in a clause or statement.
_IN_CLAUSE = {
    ("VIA", "COMMA"): "a share has one transform; two shares add up",
    ("USE", "COMMA"): "each file has a `use` of its own",
    ("FREEZE", "IF"): "a param says it: `freeze kept`, where `param kept = none` is nothing",
    ("RANK", "DOTS"): "a rank is one number; by depth it reads `rank 4 if layer < 16 else 8`",
    ("RANK", "LBRACE"): "by kind it reads `rank match kind { q_proj: 8; else: 4 }`",
}
_COMPARISONS = ("LT", "LE", "GT", "GE", "EQ", "NE")
_QUOTES = tuple("'`´‘’‚“”„«»")
_NUMBERS = ("INT", "FLOAT")
_ITEMS = ("NAME", "STRING", "INT", "FLOAT", "PATH", "KIND", "PARENT")
_REMEDIES = {
    "[": "a list has no brackets, and a set has braces: `layer in {0, 4}`",
    "]": "a list has no brackets, and a set has braces: `layer in {0, 4}`",
    "\xa0": "this looks like a space and is another character: write a space",
    ":": "there is no `:` between a word and what it says",
    ";": "there is no `;` behind a statement or a clause",
}


class Slip(NamedTuple):
    """What to do about a mistake: ``dropped`` tokens are left out, by their distance from it, the token is
    taken for one of ``kind``, or one of the kind ``missing`` is put before it; with none of these, reading
    goes on at the next clause or statement. ``at`` is the token to point at, where that is another one;
    ``joined`` is what the tokens of ``reach``, by their distance from it, are together.
    ``edits`` do what ``help`` says to the text, where that is not the same: none if one cannot tell."""

    help: str | None = None
    dropped: Sequence[int] = ()
    kind: str | None = None
    missing: str | None = None
    at: Token | None = None
    edits: tuple[Edit, ...] | None = None
    joined: str | None = None
    reach: tuple[int, int] = (-1, 1)


def edits_of(tokens: Sequence[Token], position: int, slip: Slip) -> tuple[Edit, ...]:
    """Return what the text would have to say in place of the mistake at a token, if that is known."""
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


def known_slip(tokens: Sequence[Token], position: int, allowed: Set[str]) -> Slip:
    """Recognise the mistake at a token, if it is known, where only the kinds in ``allowed`` could stand."""
    token = tokens[position]
    before = [*reversed(tokens[max(0, position - 3) : position])]
    kinds = [previous.type for previous in before] + [""] * 3
    after = tokens[position + 1 : position + 3]
    if token.type == BAD and kinds[0] == "USE":
        written = [other for other in tokens[position:] if other.line == token.line]
        path = f'"{"".join(written)}"'
        reach, edits = (0, len(written) - 1), _write(path, token, written[-1])
        return Slip(f"a path is quoted: `use {path}`", edits=edits, joined=path, reach=reach)
    if token.type == BAD:
        return _unreadable(token, before, after)
    if token.type == "NAME" and words().get(token.lower()) in allowed:
        return Slip(f"keywords are written small: `{token.lower()}`", kind=words()[token.lower()])
    if token.type == "EQUAL" and kinds[0] in CLAUSE_KINDS:
        meant = f"{before[0]} {after[0]}".rstrip()
        return Slip(f"a clause has no `=`: `{meant}`", [0])
    if token.type == "EQUAL" and "COLON" in allowed:
        arrow = [1] if after[:1] == [">"] else []
        edits = _write(":", token, after[0] if arrow else None)
        return Slip("an arm of `match` reads `q_proj: 4`", arrow, kind="COLON", edits=edits)
    if token.type == "EQUAL" and "EQ" in allowed:
        return Slip("a comparison is written `==`", kind="EQ")
    if token.type == "COLON" and "EQUAL" in allowed:
        return Slip(f"here stands `=`: `{before[0]} = {after[0]}`", kind="EQUAL")
    if token.type == "MINUS" and kinds[0] == "NAME" and kinds[1] == "USE" and after[0] != "":
        name = f"{before[0]}-{after[0]}"
        ships = nearest(name, shipped_specs()) or ""
        meant = ships.split("`")[1] if ships.startswith("did you mean") else f'"{name}"'
        help_line = ships if meant in ships else f"a name with `-` is quoted: `{meant}`"
        return Slip(help_line, edits=_write(meant, before[0], after[0]), joined=meant)
    if token.type == "MINUS" and kinds[1] in ("SHARE", "PARAM", "LET", "SPEC") and len(after) > 1:
        name = f"{before[0]}_{after[0]}"
        edits = _write(name, before[0], after[0])
        return Slip(f"a name has letters, digits and `_`: `{name}`", edits=edits, joined=name)
    ends = after and (kinds[1] == "SPEC" or after[0].type in CLAUSE_KINDS)
    if (
        token.type == "NAME"
        and ends
        and kinds[1] in ("SPEC", "SHARE")
        and before[0].line == token.line
    ):
        name = f"{before[0]}_{token}"
        edits = _write(name, before[0], token)
        return Slip(f"a name is one word: `{name}`", edits=edits, joined=name, reach=(-1, 0))
    if token == "is" and "EQ" in allowed:
        return Slip("a comparison is written `==`", kind="EQ")
    if token.type == "NOT" and after[:1] == ["in"] and before:
        return Slip(f"`not` stands before the whole: `not {before[0]} in ...`")
    if token.type == "INT" and len(token) < 6 and before and before[0] in ("first", "last"):
        layers = f"0..{int(token) - 1}" if before[0] == "first" else f"-{token}..-1"
        return Slip(f"layers count from 0: `layer in {layers}`")
    if token in ("layer", "layers") and kinds[0] == "INT" and kinds[1] == "PER":
        return Slip(f"a pool of {before[0]} layers in a row is `per layer // {before[0]}`", [0])
    if token.type == "LPAR" and kinds[1] == "SHARE":
        rest = [other.type in STATEMENT_KINDS | {END} for other in tokens[position:]]
        help_line = f"clauses stand behind the name: `share {before[0]} per module rank 8`"
        return Slip(help_line, range(rest.index(True)))
    if token.type in _NUMBERS and before and before[0] == "layer":
        last = after[1] if len(after) > 1 and after[0].type in ("MINUS", "DOTS") else token
        return Slip(f"layers are chosen by `layer in {token}..{last}` or `layer == {token}`")
    if token.type in _NUMBERS and kinds[0] == "LPAR" and kinds[2] == "VIA":
        return Slip(f"options have names: `{before[1]}(size = {token})`, say")
    comment = (
        token.type == "FLOOR"
        or (token == "/" and after[:1] == ["*"])
        or (token == "-" and after[:1] == ["-"])
    )
    if comment and (not before or before[0].line != token.line):
        line = [i for i, other in enumerate(tokens[position:]) if other.line == token.line]
        return Slip("comments begin with `#`", line, edits=_write("#", token))
    if token.type == "NAME" and kinds[1] == "FLOOR" and before[1].line == token.line:
        line = [i for i, other in enumerate(tokens[position:]) if other.line == token.line]
        help_line = "comments begin with `#`; `//` is a division that rounds down"
        return Slip(help_line, line, at=before[1], edits=_write("#", before[1]))
    if token.type in _COMPARISONS and kinds[0] == "LT":
        return Slip("what differs is compared by `!=`")
    if token.type == "GT" and before[:1] == ["="]:
        return Slip("at least is `>=`")
    if token.type == "COLON" and "DOTS" in allowed:
        return Slip(f"a range has two dots: `{before[0]}..{after[0]}`", kind="DOTS")
    if token.type in _COMPARISONS and kinds[1] in _COMPARISONS:
        return Slip("one comparison has two sides: `layer > 4 and layer < 8`")
    if token.type == "TIMES" and kinds[0] == "TIMES":
        return Slip(_POWER)
    if token.type == "TIMES" and _clause(tokens[:position]) in ("TARGET", "LET", "WHERE"):
        return Slip('a pattern is quoted, behind what it is of: `kind "*_proj"`')
    if kinds[0] == "MODULO" and kinds[1] in _NUMBERS:
        number = f"{float(before[1]) / 100:g}"
        help_line = f"`%` is the rest of a division; for {before[1]} percent write `{number}`"
        return Slip(help_line, at=before[0], edits=_write(number, before[1], before[0]))
    if token.type == "COMMA" and "SEMICOLON" in allowed:
        return Slip("a `;` stands between arms", kind="SEMICOLON")
    if kinds[0] == "START":
        return Slip("a share starts at zero by itself: leave `start` out, or write `start nonzero`")
    if token.type == "INIT" and kinds[0] == "GAIN":
        return Slip("a gain says which: `gain out init 1`, or `gain rank init 1`", missing="OUT")
    if token.type == "NAME" and kinds[1] == "VIA" and "LPAR" in allowed and after[0] == "=":
        return Slip(f"options stand in brackets: `{before[0]}({token} = {after[-1]})`")
    if in_clause := _IN_CLAUSE.get((_clause(tokens[:position]), token.type)):
        return Slip(in_clause)
    if token in _REMEDIES:
        return _dropped(token)
    if "DOTS" in allowed and kinds[0] in _NUMBERS and kinds[1] == "MINUS":
        edits = _write("..", before[1])
        return Slip(f"a range has two dots: `{before[2]}..{before[0]}`", at=before[1], edits=edits)
    if "DOTS" in allowed and not {"RBRACE", "COLON"} & {*allowed}:
        return Slip("a range is `0..7`, several layers `{0, 2, 4}`, and one is `layer == 3`")
    if token.type == "NAME" and token in _ELSEWHERE:
        here = _ELSEWHERE[token]
        called = words().get(here.split("`")[1]) if "called" in here else None
        return Slip(here, kind=called if called in allowed else None)
    if kinds[0] in ("AND", "OR") and token.type in ("LT", "LE", "GT", "GE", "EQ", "NE", "IN"):
        return Slip(f"both conditions have a left side: `layer > 4 {before[0]} layer < 8`")
    if (opened := _not_closed(tokens[:position])) and token.type in STATEMENT_KINDS | CLAUSE_KINDS:
        return Slip(f"the `{opened}` of line {opened.line} is not closed", at=opened)
    near = kind = None
    if token.type == "NAME":
        begins = not before or before[0].line != token.line
        kinds_here = allowed if begins else allowed - STATEMENT_KINDS
        known = [word for kind in kinds_here if (word := spelled(kind)) and len(word) > 2]
        near = nearest(token, known) or ""
        kind = words()[near.split("`")[1]] if near.startswith("did you mean") else None
    if allowed == {"PER"}:
        help_line = "a list has commas (`A, B`); a key for one factor reads `A per layer`"
        return Slip(help_line, kind=kind)
    if kind:
        return Slip(near, kind=kind)
    if "COMMA" in allowed and token.type in _ITEMS:
        return Slip("a comma stands between the parts of a list", missing="COMMA")
    if token.type in STATEMENT_KINDS and before and before[0].line != token.line:
        left = "COMMA" in kinds[:1]
        return Slip("leave the comma at the end out" if left else _such(tokens[:position]))
    if is_keyword(token) and "NAME" in allowed:
        edits = _write(f'"{token}"', token)
        return Slip(f"`{token}` is a keyword; {in_quotes(token)}", edits=edits)
    return Slip(_such(tokens[:position]))


def _such(tokens: Sequence[Token]) -> str:
    """Say what the clause or statement that these tokens end in looks like."""
    return f"such as {_SUCH[_clause(tokens)]}"


def _clause(tokens: Sequence[Token]) -> str:
    """Return the kind of the word that begins the clause or statement that these tokens end in."""
    for before, token in zip(reversed([None, *tokens[:-1]]), reversed(tokens), strict=False):
        # `alpha` and `rank` are values, too.
        value = token.type in ("ALPHA", "RANK") and before is not None and not before.isalnum()
        value = value or (before is not None and before.type in ("SCALE", "GAIN", "SHARE"))
        if token.type in _SUCH and not value:
            return token.type
    return "SPEC"


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
    if token == "\\":
        return Slip("a share goes on over lines without a sign", [0])
    if token == "." and before and before[0].type == "DOTS":
        return Slip("a range has two dots: `0..8`", [0])
    if token == "." and before and before[0].type == "NAME" and after[0].type == "NAME":
        return Slip(f'a part of a path is quoted: `path "*.{before[0]}.{after[0]}"`')
    alone = not before or span_of(before[0]).end < start
    if token == "." and alone and after[0].type == "INT" and span_of(after[0]).start == end:
        edits = _write("0.", token)
        return Slip(f"a number has a digit before its point: `0.{after[0]}`", [0], edits=edits)
    if token in _REMEDIES:
        return _dropped(token)
    if token in _SIGNS:
        return Slip(_SIGNS[token])
    if token.isdecimal() or not token.isprintable():
        digits = "a number is written with the digits 0 to 9"
        return Slip(digits if token.isdecimal() else "leave it out")
    if len(token) > 1:
        help_line = "put a name in quotes that has letters beyond a to z"
        return Slip(help_line, edits=_write(f'"{token}"', token))
    others = "put a name in quotes that has other characters than letters, digits and `_`"
    return Slip(others if token in (".", "-") else None)
