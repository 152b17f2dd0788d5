"""Advise on an unknown word: its equivalent in this language, or the nearest valid name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from typing import Any

from bishare_dsl.diagnostics.problem import nearest
from bishare_dsl.diagnostics.record import Record
from bishare_dsl.resources import peft_words, table

_VALUE = r"\{[^}]*\}|\[[^\]]*\]|[\w.+'\"-]+(?:[ \t]*,[ \t]*[\w.+'\"-]+)*"


class Meaning(Record):
    """What a word of another program is here: a sentence, and what to write instead if that is one text."""

    help: str
    instead: str | None = None


@cache
def _table() -> dict[tuple[str, str], Meaning]:
    """Read the advice in `words.txt`, by the kind of location and the word."""
    meanings: dict[tuple[str, str], Meaning] = {}
    for pattern, help_line in table("words.txt"):
        head, certain, instead = pattern.partition(" => ")
        place, _, words = head.partition(": ")
        meaning = Meaning(help_line, instead if certain else None)
        for word in words.split(" "):
            meanings[place, word] = meaning
    return meanings


def meaning_of(place: str, name: str) -> Meaning | None:
    """Return what a word of another program is here, in a kind of location such as ``key``."""
    return _table().get((place, name.lower()))


def advise(place: str, name: str, valid: Iterable[str] = (), few: int = 12) -> str | None:
    """Write a help line on a word: the table's advice, the nearest valid name, or all valid names.

    Args:
        place: a kind of location in the table, such as ``row``.
        name: the word.
        valid: the valid names.
        few: the maximum number of valid names to list.
    """
    if same := [word for word in valid if word.lower() == name.lower()]:
        return f"did you mean `{same[0]}`?"
    meaning = meaning_of(place, name)
    return meaning.help if meaning else nearest(name, valid, few)


def advise_option(place: str, name: str, value: Any, takes: Mapping[str, Any]) -> str | None:
    """Write a help line on an unknown option, after a look at what the named option would do with its value.

    Args:
        place: ``flag`` or ``argument`` of the table.
        name: the option, without hyphens; before a colon may stand a command, whose rows go first.
        value: the value that it is given; None if there is none.
        takes: the type of each option that there is. No other one is named.
    """
    bare = name.rpartition(":")[2].lower()
    for word in (name, bare, bare.removeprefix("lora_")):
        meaning = meaning_of(place, word)
        help = meaning.help if meaning else ""
        named = {a or b for a, b in re.findall(r"`--(\w+)|it is `(\w+)`", help)}
        if help and named <= takes.keys():
            return help
        if place == "argument" and (spec := peft_advice(word, f"={value}")):
            return f"in the spec, {spec}"
    return nearest(bare, [n for n, kind in takes.items() if takes_value(kind, value)], few=0)


def takes_value(kind: Any, value: Any) -> bool:
    """Return whether an option of a type takes a value, or is a switch if there is none."""
    from pydantic import TypeAdapter

    with suppress(ValueError):
        TypeAdapter(kind).validate_python("true" if value is None else value)
        return value is not None or kind in (bool, bool | None)
    return False


def peft_advice(word: str, given: str = "") -> str | None:
    """Say what a field of `LoraConfig` is here, with the value that is given it in place of the example's."""
    if (meant := peft_words().get(word.lower())) is None:
        return None
    example = re.search(rf"\b{word.lower()}=({_VALUE})", meant.example)
    value = re.match(rf"[ \t]*[=:]?[ \t]*({_VALUE})", given)
    if example is None:
        return meant.advice
    if example[1].isdecimal() and value and not value[1].replace(".", "").isdecimal():
        value = None  # Another word stands there.
    return meant.advice.replace(_bare(example[1]), _bare(value[1]) if value else "...")


def _bare(value: str) -> str:
    """Return a list or a dictionary as a spec writes it: without brackets and quotes."""
    bare = re.sub(r"[\[\](){}'\"]", "", value).strip()
    return bare.replace(",", ";") if ":" in bare else bare.replace("all-linear", 'kind "*"')
