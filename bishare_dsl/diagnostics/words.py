"""Advise on an unknown word: its name in this language, or the nearest valid name."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from bishare_dsl.diagnostics.problem import nearest
from bishare_dsl.resources import table


@cache
def _table() -> dict[tuple[str, str], str]:
    """Read the table `grammars/words.txt`: what is said of a word, by its place and the word."""
    found: dict[tuple[str, str], str] = {}
    for pattern, said in table("words.txt"):
        place, _, words = pattern.partition(": ")
        found |= {(place, word): said for word in words.split(" ")}
    return found


def advise(place: str, name: str, valid: Iterable[str] = (), few: int = 12) -> str | None:
    """Write a help line on a word: what the table says of it, the nearest valid name, or what is valid.

    Args:
        place: such as ``key``, as the table has it.
        name: the word.
        valid: the names that mean something there.
        few: so many valid names at most are listed.
    """
    return _table().get((place, name.lower())) or nearest(name, valid, few)
