"""Families of several types of tasks, for `groups.py`.

The type of a task is its number modulo the number of types. Tasks of one type differ a little, each by
its own random deviations. Nobody but `known` and `named` in `groups.py` is told the types.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.wheels import EVALS, lines, records

from few.families import EACH, LABELS, LANGUAGES, VADER, Family, Fits, Task

MOST_EXAMPLES = 8
"""Of a label: members have 24 examples."""
STRAY = 0.1
"""How often a task answers one value of its key otherwise than its type."""
NOT_ASKED = -1
"""The label of a prompt that a task never has, as it is in another type's layout."""


@dataclass(frozen=True)
class Typed(Family):
    """A family whose tasks have types.

    Attributes:
        types: how many there are.
        layouts: how many prompts in a row show the same item, one for each type that has a layout of its own.
    """

    types: int = 1
    layouts: int = 1

    def task(self, number: int) -> Task:
        """Return a task, the same for everyone; its type is ``number % types``."""
        draw = random.Random(1_000_003 * number + 7)
        rule: Callable[[random.Random, int], Task] = self.rule  # type: ignore[assignment]
        while True:
            task = rule(draw, number % self.types)
            if self.has_enough(task):
                return task

    def has_enough(self, task: Task) -> bool:
        """Return whether each half has test items and examples of each label."""
        for new in (False, True):
            counts = Counter(task.labels[item] for item in self.half(new=new))
            if any(counts[label] < self.tested + MOST_EXAMPLES for label in range(LABELS)):
                return False
        return True

    def half(self, *, new: bool) -> list[int]:
        """Return the prompts of library tasks, or of new tasks; no item is in both halves."""
        items = len(self.prompts) // self.layouts
        order = random.Random(1).sample(range(items), items)
        return [item * self.layouts + i for item in order[new::2] for i in range(self.layouts)]


def strayed(draw: random.Random, usual: Sequence[int]) -> list[int]:
    """Return a type's labels, from which each strays with probability `STRAY`."""
    labels = []
    for label in usual:
        if draw.random() < STRAY:
            label = (label + draw.randint(1, LABELS - 1)) % LABELS
        labels.append(label)
    return labels


COLOURS = ("red", "blue", "green", "black", "white", "brown")
ANIMALS = (" cat", " dog", " horse", " bird", " fish", " sheep")


def orders(_: Path, fits: Fits) -> Typed:
    """Orders such as "red cat 7:", which types decide by the colour, the animal or the number."""
    items = [(c, a, n) for c in range(6) for a in range(6) for n in range(10)]
    prompts = tuple(f"{COLOURS[c]}{ANIMALS[a]} {n}:" for c, a, n in items)
    by_colour, by_animal = (0, 0, 1, 1, 2, 2), (2, 0, 1, 2, 0, 1)
    by_number = (0, 0, 0, 1, 1, 1, 1, 2, 2, 2)

    def rule(draw: random.Random, kind: int) -> Task:
        usual = (by_colour, by_animal, by_number)[kind]
        labels = strayed(draw, usual)
        return Task((" keep", " sell", " hold"), tuple(labels[item[kind]] for item in items))

    return Typed(prompts, rule, types=3)  # type: ignore[arg-type]


LAYOUTS = ("{} is", "cost {}:", "{} =", "pay {},")
LAYOUT_WORDS = (
    (" cheap", " fair", " dear"),
    (" high", " mid", " low"),
    (" gold", " silver", " bronze"),
    (" small", " medium", " large"),
)


def layouts(_: Path, fits: Fits) -> Typed:
    """Prices in four formats: each type of shop has a layout, words and limits of its own."""
    prices = random.Random(12).sample(range(100, 1000), 450)
    prompts = tuple(layout.format(price) for price in prices for layout in LAYOUTS)
    # Where the second and the third label start: type 1 counts down.
    centres = ((300, 600), (450, 750), (350, 800), (250, 700))

    def rule(draw: random.Random, kind: int) -> Task:
        low, high = (limit + draw.randint(-60, 60) for limit in centres[kind])
        labels = []
        for price in prices:
            label = (price >= low) + (price >= high)
            label = LABELS - 1 - label if kind == 1 else label
            labels += [label if i == kind else NOT_ASKED for i in range(len(LAYOUTS))]
        return Task(LAYOUT_WORDS[kind], tuple(labels))

    return Typed(prompts, rule, types=len(LAYOUTS), layouts=len(LAYOUTS))  # type: ignore[arg-type]


VOWELS = "aeiouáéíóúàèìòùâêîôûãõäëïöüyąęęó"


def words(wheels: Path, fits: Fits) -> Typed:
    """Words of six languages (evals), which types sort by language, by another map of them, or by length."""
    by_language = []
    for language in LANGUAGES:
        member = f"evals/registry/data/{language}-lexicon/samples.jsonl"
        valid = set()
        for row in records(wheels, EVALS, member):
            if row["ideal"] == "Y":
                valid.add(row["input"][-1]["content"].strip().lower())
        by_language.append(sorted(valid))
    languages = Counter(word for some in by_language for word in some)
    pick = random.Random(13)
    items = []
    for number, some in enumerate(by_language):
        usable = [word for word in some if languages[word] == 1 and fits(f"{word}:")]
        items += [(word, number) for word in pick.sample(usable, min(len(usable), EACH))]
    first, second = (0, 0, 1, 2, 1, 2), (1, 2, 2, 0, 0, 1)

    def rule(draw: random.Random, kind: int) -> Task:
        if kind < 2:
            desks = strayed(draw, (first, second)[kind])
            labels = [desks[number] for _, number in items]
        else:
            low, high = 6 + draw.randint(0, 1), 8 + draw.randint(0, 1)
            labels = [(len(word) >= low) + (len(word) >= high) for word, _ in items]
        return Task((" left", " middle", " right"), tuple(labels))

    return Typed(tuple(f"{word}:" for word, _ in items), rule, types=3)  # type: ignore[arg-type]


CONTINENTS = ("Africa", "America", "Asia", "Europe", "Pacific")
OFFICES = ("de", "es", "fi")


def countries(_: Path, fits: Fits) -> Typed:
    """Countries in the language of one of three offices (babel), each with its map of continents to desks."""
    # Of the development environment: mkdocs-material needs babel, and pandas pytz.
    import pytz
    from babel import Locale

    territories = [Locale(office).territories for office in OFFICES]
    items = []
    for code, zones in sorted(pytz.country_timezones.items()):
        areas = {zone.split("/")[0] for zone in zones}
        usable = all(fits(f"{names[code]}:") for names in territories)
        if usable and len(areas) == 1 and areas <= set(CONTINENTS):
            items.append((code, CONTINENTS.index(areas.pop())))
    prompts = tuple(f"{names[code]}:" for code, _ in items for names in territories)
    maps = ((0, 1, 2, 1, 0), (1, 2, 0, 0, 2), (2, 0, 1, 2, 1))

    def rule(draw: random.Random, kind: int) -> Task:
        desks, labels = strayed(draw, maps[kind]), []
        for _, continent in items:
            labels += [desks[continent] if i == kind else NOT_ASKED for i in range(len(OFFICES))]
        return Task((" north", " east", " south"), tuple(labels))

    return Typed(prompts, rule, tested=10, types=len(OFFICES), layouts=len(OFFICES))  # type: ignore[arg-type]


def raters(wheels: Path, fits: Fits) -> Typed:
    """Words that ten people rated (VADER): types read the worst rating, or how far the mean is from zero."""
    rated = {}
    for line in lines(wheels, VADER, "vaderSentiment/vader_lexicon.txt"):
        word, _, _, ratings = line.strip().split("\t")
        if re.fullmatch(r"[a-z]{4,12}", word) and fits(f"{word}:"):
            rated[word] = [int(rating) for rating in ratings.strip("[]").split(",")]
    chosen = random.Random(14).sample(sorted(rated), 900)
    measures = (
        [float(min(rated[word])) + sum(rated[word]) / 100 for word in chosen],
        [abs(sum(rated[word]) / 10) for word in chosen],
    )

    def rule(draw: random.Random, kind: int) -> Task:
        values = measures[kind]
        ranked = sorted(values)
        low, high = draw.uniform(0.28, 0.38), draw.uniform(0.62, 0.72)
        limits = [ranked[int(part * len(ranked))] for part in (low, high)]
        labels = tuple(sum(value >= limit for limit in limits) for value in values)
        return Task((" first", " second", " third"), labels)

    return Typed(tuple(f"{word}:" for word in chosen), rule, types=2)  # type: ignore[arg-type]


TYPED: dict[str, Callable[[Path, Fits], Typed]] = {
    "orders": orders,
    "layouts": layouts,
    "words": words,
    "countries": countries,
    "raters": raters,
}
