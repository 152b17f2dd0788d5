"""The steps of several tasks that are trained together, and the batches that the base runs for all."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import ceil
from typing import Any

import torch

from bishare_dsl.train.data.batches import IGNORED, Collator, Example, Examples


@dataclass(frozen=True)
class Task:
    """An adapter that is trained with others, and its rows.

    Attributes:
        name: the adapter's.
        keeps: what the adapter is called that is kept; tasks of one such name are tried against each other.
        examples: to train on.
        held_out: to evaluate on; empty where there are none.
        rate: its learning rate at most.
        seed: shuffles its examples.
    """

    name: str
    keeps: str
    examples: Examples
    held_out: Sequence[Example] = ()
    rate: float = 1e-4
    seed: int = 0


@dataclass(frozen=True)
class Pass:
    """What the base runs at once.

    Attributes:
        inputs: ``input_ids``, ``attention_mask`` and ``labels``, (rows, longest).
        tasks: of each row, the number of its task.
        learned: of each row, how many tokens its task learns in the step, in all of its rows.
    """

    inputs: dict[str, torch.Tensor]
    tasks: list[int]
    learned: list[int]


@dataclass(frozen=True)
class Steps(Sequence[list[Pass]]):
    """The passes of each optimizer step. A task sees in each of its steps what it would see alone.

    Args:
        tasks: which may have different numbers of rows, and end at different steps.
        collator: makes batches.
        batch: rows of each task in a step.
        epochs: how often each task sees its rows; ``most`` cuts its steps, where it is not None.
        at_once: rows in a pass, at most.
    """

    tasks: Sequence[Task]
    collator: Collator
    batch: int
    epochs: float
    most: int | None
    at_once: int
    stopped: dict[int, str] = field(default_factory=dict)
    """Tasks that have no more steps, and why."""

    def count(self, task: Task) -> int:
        """Count the steps of a task."""
        if self.most is not None:
            return self.most
        return ceil(self.epochs * ceil(len(task.examples) / self.batch))

    def __len__(self) -> int:
        return max(map(self.count, self.tasks))

    def running(self, step: int) -> list[int]:
        """List the tasks that have a step of this number, from 0 on."""
        tasks = enumerate(self.tasks)
        return [i for i, t in tasks if i not in self.stopped and step < self.count(t)]

    def __getitem__(self, step: Any) -> Any:
        if not 0 <= step < len(self):
            raise IndexError(step)
        return self.passes([(i, self._rows(self.tasks[i], step)) for i in self.running(step)])

    def _rows(self, task: Task, step: int) -> list[Example]:
        """Return what a task learns in a step: its rows are shuffled anew in each epoch."""
        epoch, number = divmod(step, ceil(len(task.examples) / self.batch))
        order = _order(len(task.examples), task.seed, epoch)
        return [task.examples[i] for i in order[number * self.batch : (number + 1) * self.batch]]

    def passes(self, rows: Sequence[tuple[int, Sequence[Example]]]) -> list[Pass]:
        """Fill passes with the rows of some tasks: short ones together, and equally many of each."""
        ranked = []
        for task, examples in rows:
            learned = sum(map(count_learned, examples))
            short_first = sorted(examples, key=lambda example: len(example["input_ids"]))
            ranked += [(rank, task, learned, e) for rank, e in enumerate(short_first)]
        ranked.sort(key=lambda row: row[:2])
        size = self.at_once - self.at_once % len(rows) if 0 < len(rows) < self.at_once else 0
        size = size or self.at_once
        parts = [ranked[i : i + size] for i in range(0, len(ranked), size)]
        return [self._pass(sorted(part, key=lambda row: row[1])) for part in parts]

    def _pass(self, rows: Sequence[tuple[int, int, int, Example]]) -> Pass:
        inputs = self.collator([example for *_, example in rows])
        return Pass(inputs, [row[1] for row in rows], [row[2] for row in rows])


@lru_cache(1024)
def _order(rows: int, seed: int, epoch: int) -> list[int]:
    return random.Random(f"{seed} {epoch}").sample(range(rows), rows)


def count_learned(example: Example) -> int:
    """Count the tokens of an example that are learned: the first is not predicted."""
    return sum(label != IGNORED for label in example["labels"][1:])
