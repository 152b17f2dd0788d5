"""Advice that is tried before it is given: what it names is there, and what it writes can be read."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bishare_dsl.diagnostics.problem import nearest
from bishare_dsl.diagnostics.words import advise, takes_value
from bishare_dsl.resources import table


def near_path(path: str, fits: Callable[[str], bool]) -> str | None:
    """Name the nearest of the paths in the folder of one that does not exist, among those that fit."""
    asked = Path(path)
    with suppress(OSError):
        there = {p.name: str(p) for p in asked.expanduser().parent.iterdir() if fits(str(p))}
        for name in (name for name in there if name.startswith(f"{asked.name}.")):
            return f"did you mean `{there[name]}`?"
        help = nearest(asked.name, there, few=0) or ""
        return re.sub("`(.+?)`", lambda match: f"`{there[match[1]]}`", help) or None
    return None


def value_meant(value: str, kind: Any) -> str | None:
    """Write the value that a text means, as a type takes it: a number without signs of other languages."""
    meant = (v for v in _values(value) if v != value and takes_value(kind, v))
    return next((f"write `{v}`" for v in meant), None)


def _values(value: str) -> Iterator[str]:
    plain = re.sub("[−–—]", "-", value.strip(" \t\"'“”‘’"))
    yield from (plain, plain.lower())
    thousands = re.fullmatch(r"-?\d{1,3}(,\d{3})+", plain)
    number = plain.rstrip("% ").replace(",", "" if thousands else ".")
    with suppress(ValueError):
        fraction = float(number) / 100 ** plain.endswith("%")
        yield f"{fraction:.0f}" if fraction.is_integer() else f"{fraction:g}"


def names_meant(names: Sequence[str], sets: Iterable[Sequence[str]]) -> str | None:
    """Say which names to change, so that they have all names of a set."""
    means = {n: {n, n.strip().lower(), *(advise("called", n.strip()) or "").split()} for n in names}
    for needed in sets:
        has = {wanted: [name for name in names if wanted in means[name]] for wanted in needed}
        if all(has.values()) and len({candidates[0] for candidates in has.values()}) == len(needed):
            pairs = (
                (candidates[0], wanted)
                for wanted, candidates in has.items()
                if candidates[0] != wanted
            )
            return " and ".join(f"call `{name}` `{wanted}`" for name, wanted in pairs)
    return None


def json_meant(text: str) -> str | None:
    """Say what to write in a text, so that it is JSON."""
    for mend, said in table("mends.txt"):
        pattern, _, there = mend.partition(" =>")
        with suppress(ValueError, RecursionError):
            json.loads(re.sub(pattern, there.strip(), text), strict=False)
            return said
    with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
        if len(text) < 100_000 and isinstance(ast.literal_eval(text), dict | list):
            return "that is Python: `json.dumps(row)` writes JSON"
    return None
