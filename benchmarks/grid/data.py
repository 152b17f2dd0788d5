"""Three data sets of real words for a grid of runs. See notes/2026-12-03-grid.md.

    data.py DIR          # writes DIR/NAME-train.jsonl and DIR/NAME-held.jsonl

Each row has a prompt, the right completion, and the options among which an adapter chooses.
"""

from __future__ import annotations

import json
import os
import random
import re
import socket
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]

from harness.wheels import EVALS, lines, records

from bishare_dsl.resources import cache_folder

VADER = "vaderSentiment==3.3.2"
TRAIN, HELD = 128, 128
"""Rows of each set; as many of each option, as far as it goes."""
LANGUAGES = ("spanish", "irish", "polish")
MODULES = {"os": os, "socket": socket, "ssl": ssl}

Labelled = dict[str, Sequence[str]]
"""The prompts of each option."""


def sentiment(wheels: Path) -> Labelled:
    """Words that people rated as good or bad, clearly."""
    words: dict[str, list[str]] = {" bad": [], " good": []}
    for line in lines(wheels, VADER, "vaderSentiment/vader_lexicon.txt"):
        word, mean, *_ = line.split("\t")
        if re.fullmatch(r"[a-z]{4,10}", word) and abs(float(mean)) >= 1.5:
            words[" good" if float(mean) > 0 else " bad"].append(f"{word} is")
    return dict(words)


def languages(wheels: Path) -> Labelled:
    """Words that only one of three languages has."""
    words = dict[str, set[str]]()
    for language in LANGUAGES:
        member = f"evals/registry/data/{language}-lexicon/samples.jsonl"
        of_language = words[language] = set()
        for row in records(wheels, EVALS, member):
            word = row["input"][-1]["content"].strip().lower()
            if row["ideal"] == "Y" and len(word) <= 10:
                of_language.add(word)
    return _alone({f" {name.title()}": some for name, some in words.items()}, "{} is")


def modules(_: Path) -> Labelled:
    """Public names that only one of three modules of Python's library has."""
    names = dict[str, set[str]]()
    for name, module in MODULES.items():
        names[f" {name}"] = {
            word for word in dir(module) if not word.startswith("_") and len(word) <= 18
        }
    return _alone(names, "{} is in")


def _alone(words: dict[str, set[str]], prompt: str) -> Labelled:
    """Keep the words of one option alone."""
    labelled = Labelled()
    for option, some in words.items():
        others = set[str]().union(*(words[other] for other in words if other != option))
        labelled[option] = [prompt.format(word) for word in sorted(some - others)]
    return labelled


SETS = {"sentiment": sentiment, "languages": languages, "modules": modules}


def main() -> None:
    """Write the rows."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in SETS.items():
        labelled = make(cache_folder() / "wheels")
        draw = random.Random(name)
        options = [*labelled]
        each = (TRAIN + HELD) // len(options)
        rows = []
        for option, prompts in labelled.items():
            chosen = draw.sample([*prompts], min(each, len(prompts)))
            rows += [{"prompt": p, "completion": option, "options": options} for p in chosen]
        draw.shuffle(rows)
        for part, some in (("held", rows[:HELD]), ("train", rows[HELD:])):
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in some)
            (folder / f"{name}-{part}.jsonl").write_text(text, encoding="utf-8")
        sizes = {option: len(prompts) for option, prompts in labelled.items()}
        sys.stdout.write(f"{name}: {len(rows) - HELD} and {HELD} rows, out of {sizes}\n")


if __name__ == "__main__":
    main()
