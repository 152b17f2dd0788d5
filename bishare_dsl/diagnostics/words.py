"""Advise on an unknown word: its equivalent in this language, or the nearest valid name."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from bishare_dsl.diagnostics.problem import nearest
from bishare_dsl.resources import peft_words, table


@cache
def _table() -> dict[tuple[str, str], str]:
    """Read the advice in `grammars/words.txt` and `peft.txt`, by the kind of location and the word."""
    advice = {("argument", w): f"in the spec, {p.advice}" for w, p in peft_words().items()}
    advice |= {("peft", word): meant.advice for word, meant in peft_words().items()}
    for pattern, help_line in table("words.txt"):
        place, _, words = pattern.partition(": ")
        advice |= {(place, word): help_line for word in words.split(" ")}
    return advice


def advise(place: str, name: str, valid: Iterable[str] = (), few: int = 12) -> str | None:
    """Write a help line on a word: the table's advice, the nearest valid name, or all valid names.

    Args:
        place: a kind of location in the table, such as ``key``.
        name: the word.
        valid: the valid names.
        few: the maximum number of valid names to list.
    """
    return _table().get((place, name.lower())) or nearest(name, valid, few)


@cache
def english() -> frozenset[str]:
    """Return words of English that no module is called."""
    return frozenset(word for place, word in _table() if place == "english")
