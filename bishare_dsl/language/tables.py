"""The parser's tables: `share.lark` compiled by Lark once, and kept as JSON beside the grammar.

Building LALR tables, or only importing Lark, takes longer than reading a spec does, and `bishare check`
answers at once. So the tables are committed, and Lark is imported only where the grammar has changed since.
After an edit of the grammar: ``python -m bishare_dsl.language.tables``.
"""

from __future__ import annotations

import json
from collections import deque
from functools import cache
from typing import Any, NamedTuple
from zlib import crc32

from bishare_dsl.resources import grammar

END = "$END"


class Rule(NamedTuple):
    """``length`` values become one. A rule whose name starts with ``_`` gives a plain list of its parts, and
    an ``inline`` one with a single part gives that part."""

    name: str
    length: int
    inline: bool


class Tables(NamedTuple):
    """All that the lexer and the parser know of the grammar."""

    grammar: int
    """CRC-32 of the grammar's text: it tells stale tables, and needs no slow import."""
    patterns: dict[str, str]
    """Terminal -> regular expression, in the order to be tried; the ignored ones too."""
    words: dict[str, str]
    """Keyword or sign -> terminal."""
    rules: list[Rule]
    states: list[dict[str, int]]
    """For each state, what a symbol does: ``n >= 0`` go to state n, ``n < 0`` reduce by rule ``-1 - n``."""


@cache
def tables() -> Tables:
    """The tables of the grammar as it stands, from `share.json` or, if that is stale, from Lark."""
    text = grammar("share.lark").read_bytes()
    try:
        stored = Tables(**json.loads(grammar("share.json").read_bytes()))
    except (OSError, ValueError, TypeError):
        return build(text)
    if stored.grammar != crc32(text):
        return build(text)
    return stored._replace(rules=[Rule(*rule) for rule in stored.rules])


def build(text: bytes) -> Tables:
    """Compile a grammar with Lark. The result depends on the grammar alone, not on Lark's numbering."""
    from lark import Lark
    from lark.grammar import Rule as LarkRule
    from lark.lexer import TerminalDef

    lark = Lark(text.decode(), parser="lalr", lexer="basic", maybe_placeholders=False)
    data, memo = lark.memo_serialize([TerminalDef, LarkRule])
    parser: dict[str, Any] = data["parser"]["parser"]
    tokens: dict[Any, str] = parser["tokens"]

    ordered = sorted(
        (m for m in memo.values() if m["__type__"] == "Rule"),
        key=lambda rule: (rule["origin"]["name"], [s["name"] for s in rule["expansion"]]),
    )
    identity = {
        (rule["origin"]["name"], tuple(s["name"] for s in rule["expansion"])): i
        for i, rule in enumerate(ordered)
    }

    def reduction(reference: dict[str, Any]) -> int:
        rule = memo[reference["@"]]
        return -1 - identity[rule["origin"]["name"], tuple(s["name"] for s in rule["expansion"])]

    # States are numbered as they are reached from the first one, symbols in alphabetical order.
    first = parser["start_states"]["start"]
    number, waiting, states = {first: 0}, deque([first]), []
    while waiting:
        row = {}
        state = waiting.popleft()
        if state == parser["end_states"]["start"]:
            row[END] = number[state]
        for symbol, (reduces, argument) in sorted(
            (tokens[token], action) for token, action in parser["states"][state].items()
        ):
            if reduces:
                row[symbol] = reduction(argument)
                continue
            if argument not in number:
                number[argument] = len(number)
                waiting.append(argument)
            row[symbol] = number[argument]
        states.append(row)

    literal = {t.pattern.value: t.name for t in lark.terminals if t.pattern.type == "str"}
    regular = {t.name: t.pattern.value for t in lark.terminals if t.pattern.type == "re"}
    order = ("SPACE", "COMMENT", "NAME", "FLOAT", "INT", "STRING")
    return Tables(
        grammar=crc32(text),
        patterns={name: regular.pop(name) for name in order} | regular,
        words=dict(sorted(literal.items())),
        rules=[
            Rule(r["origin"]["name"], len(r["expansion"]), bool(r["options"]["expand1"]))
            for r in ordered
        ],
        states=states,
    )


def serialised(built: Tables) -> str:
    """`share.json`: one state a line, so that a change of the grammar can be reviewed."""
    fields = built._asdict()
    states = ",\n".join(json.dumps(row, separators=(",", ":")) for row in fields.pop("states"))
    head = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in fields.items())
    return f'{{{head},\n"states": [\n{states}\n]}}\n'


if __name__ == "__main__":
    grammar("share.json").write_text(
        serialised(build(grammar("share.lark").read_bytes())), encoding="utf-8", newline="\n"
    )
