"""Disjoint training, validation and test examples of a task.

Texts are compared after normalising case, spaces and punctuation. The first of several equal examples is
kept, and equal texts with different labels are all dropped. A training example is also dropped if its
passage occurs in the test part.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

PARTS = ("train", "validation", "test")
BATCH = 16
# Of the split and the sub-sampling, whatever a run's own seed is.
SPLIT_SEED = 20250101


class Row(NamedTuple):
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


class Size(NamedTuple):
    """How many rows of each part are used at most; those with more than `longest` tokens in no part."""

    train: int
    validation: int
    test: int
    longest: int | None = None

    @property
    def steps(self) -> int:
        """How many batches a run trains on: all rows once, where the source has as many."""
        return self.train // BATCH


Source = Callable[[Path], Iterable[Row]]
TOGETHER = Size(train=192, validation=0, test=120, longest=128)
"""Of each of many tasks that train in one run: what seconds can teach."""


class Task(NamedTuple):
    """A data set, read out of wheels, and the sizes that it comes in, by name.

    Attributes:
        test: where the test part comes from, if it is not cut from the training source.
    """

    train: Source
    test: Source | None = None
    small: Size | None = None
    together: Size | None = TOGETHER

    @property
    def again(self) -> Size | None:
        """The size of a run that repeats a job of size `small`, so that the first result stays."""
        return self.small


def normal(text: str) -> str:
    """Return what two texts that count as the same have in common."""
    return " ".join(re.findall(r"\w+", text.lower()))


def distinct(rows: Iterable[Row]) -> list[Row]:
    """Return one row for each text, in order; none where two rows of a text disagree."""
    by_text: dict[str, list[Row]] = {}
    for row in rows:
        by_text.setdefault(row.text, []).append(row)
    return [same[0] for same in by_text.values() if len({row.answer for row in same}) == 1]


def split(
    train: Iterable[Row],
    test: Iterable[Row] | None,
    size: Size,
    fits: Callable[[Row], bool] = lambda _: True,
) -> dict[str, list[Row]]:
    """Return the parts, the same for everyone: no text is in two of them, and no passage in test and another.

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
    # The other parts contain no passage of the test source, sampled or not.
    passages, texts = {row.passage for row in test}, {row.text for row in test}
    rest = [r for r in train if r.passage not in passages and r.text not in texts and fits(r)]
    validation = rest[: size.validation]
    # By passage, for one passage can have several questions.
    held = {row.passage for row in validation}
    kept = [row for row in rest[size.validation :] if row.passage not in held]
    drawn = [row for row in test if fits(row)][: size.test]
    return dict(zip(PARTS, (kept[: size.train], validation, drawn), strict=True))
