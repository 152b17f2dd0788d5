"""Optimizer steps of several tasks trained together, and the batches that they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import ceil
from typing import Any

import torch
from datasets import Dataset

from bishare_dsl.train.data.batches import ALLOWED, IGNORED, Collator, Example
from bishare_dsl.train.data.encoding import DataReport

PASS = 64
"""The tokens that a CPU computes in the time that one more pass takes."""


@dataclass(frozen=True)
class Task:
    """An adapter that is trained with others, and its examples.

    Attributes:
        name: the adapter's name.
        examples: the training examples.
        held_out: the held-out examples, perhaps empty.
        order: the seed for shuffling the examples.
        data: reports on the rows, by ``"train"`` and ``"eval"``.
        start: the members that it starts from; None if it starts from zero.
        begins: where it starts, as ``--start`` says it.
        trains: whether it trains; a sum of members may stay as it is.
        members: the names of the tasks that it joins, if it is a group.
        group: the group of the library whose numbers it has.
    """

    name: str
    examples: Dataset
    held_out: Dataset | tuple[()] = ()
    order: int = 0
    data: Mapping[str, DataReport] = field(default_factory=dict)
    start: str | None = None
    begins: str = "zero"
    trains: bool = True
    members: tuple[str, ...] = ()
    group: str | None = None


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward pass.

    Attributes:
        inputs: ``input_ids``, ``attention_mask`` and ``labels``, (rows, longest).
        names: the adapter of each row; None for the base.
        values: what the loss needs for each row, by name, ``(rows, positions or 1)``.
    """

    inputs: dict[str, torch.Tensor]
    names: list[str | None]
    values: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Steps(Sequence[list[MicroBatch]]):
    """The passes of each optimizer step. Each task sees the same examples as if it trained alone.

    Args:
        tasks: tasks, perhaps with different numbers of rows and steps.
        collator: builds batches.
        batch: rows per step of each task, and of each member of a group.
        epochs: passes over each task's rows; ``most`` limits its steps unless it is None.
        at_once: the maximum number of rows per pass.
    """

    tasks: list[Task]
    collator: Collator
    batch: int
    epochs: float
    most: int | None
    at_once: int

    def batch_of(self, task: Task) -> int:
        """Return the number of rows of a task in a step."""
        return self.batch * max(1, len(task.members))

    def in_epoch(self, task: Task) -> int:
        """Count the steps of one pass over a task's rows."""
        return ceil(len(task.examples) / self.batch_of(task))

    def count(self, task: Task) -> int:
        """Count the steps of a task."""
        if not task.trains:
            return 0
        if self.most is not None:
            return self.most
        return ceil(self.epochs * self.in_epoch(task))

    def epochs_of(self, number: int) -> float:
        """Return the number of epochs of a task."""
        task = self.tasks[number]
        return self.count(task) / self.in_epoch(task)

    def __len__(self) -> int:
        return max(map(self.count, self.tasks))

    def running(self, step: int) -> list[int]:
        """List the tasks that are active in the step of this number, from 0."""
        return [i for i, task in enumerate(self.tasks) if step < self.count(task)]

    def __getitem__(self, step: Any) -> Any:
        if not 0 <= step < len(self):
            raise IndexError(step)
        return self.passes([(i, self._rows(self.tasks[i], step)) for i in self.running(step)])

    def _rows(self, task: Task, step: int) -> list[Example]:
        """Return a task's rows for a step; they are reshuffled in each epoch."""
        epoch, number = divmod(step, self.in_epoch(task))
        order = _order(len(task.examples), task.order, epoch)
        batch = self.batch_of(task)
        return [task.examples[i] for i in order[number * batch : (number + 1) * batch]]

    def passes(self, rows: Sequence[tuple[int, Sequence[Example]]]) -> list[MicroBatch]:
        """Divide the rows of some tasks into passes, by `cut`."""
        sized: list[tuple[int, int, Example]] = []
        for task, examples in rows:
            learned = sum(map(count_learned, examples))
            sized += [(task, learned, row) for row in examples]
        # Token ids break ties, so that a step with all rows has the same passes in each epoch.
        sized.sort(key=lambda row: (row[0], row[2]["input_ids"]))
        cuts = cut([row for _, _, row in sized], self.at_once)
        return [self._pass([sized[i] for i in sorted(some)]) for some in cuts]

    def _pass(self, rows: Sequence[tuple[int, int, Example]]) -> MicroBatch:
        tasks, learned, examples = zip(*rows, strict=True)
        names = [self.tasks[task].name for task in tasks]
        # The loss of a task is the mean over its trained tokens in all rows of the step.
        weights = (1 / torch.tensor(learned)).unsqueeze(1)
        return MicroBatch(self.collator(examples), names, {"weights": weights})


def cut(rows: Sequence[Example], most: int) -> list[list[int]]:
    """Divide rows, by number, into passes of ``most`` rows or fewer, of similar lengths, the longest first.

    A CPU computes padding like other tokens, and a pass costs about `PASS` tokens more. An accelerator waits
    for the launches of a pass, so it gets as few passes as possible. The loss of rows with options is
    another, so they are in passes without other rows.
    """
    a_pass = 10**9 if torch.accelerator.is_available() else PASS
    kinds = [(ALLOWED in row, len(row["input_ids"])) for row in rows]
    order = sorted(range(len(rows)), key=kinds.__getitem__)
    best = [(0, 0)]
    # The least cost of the first rows, with the start of their last pass.
    for stop, (options, length) in enumerate(sorted(kinds), 1):
        starts = (i for i in range(max(0, stop - most), stop) if kinds[order[i]][0] is options)
        best.append(min((best[i][0] + (stop - i) * length + a_pass, i) for i in starts))
    passes: list[list[int]] = []
    left = len(rows)
    while left:
        passes.append(order[best[left][1] : left])
        left -= len(passes[-1])
    return passes


@lru_cache(1024)
def _order(rows: int, seed: int, epoch: int) -> list[int]:
    """Shuffle rows as accelerate's sampler does for a run of one adapter."""
    generator = torch.Generator().manual_seed(seed + epoch)
    return torch.randperm(rows, generator=generator).tolist()


def count_learned(example: Example) -> int:
    """Count the trained tokens of an example; the first token is not predicted."""
    return sum(label != IGNORED for label in example["labels"][1:])
