"""The steps of several tasks that are trained together, and the batches that the base runs for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import ceil
from typing import TYPE_CHECKING, Any

import torch

from bishare_dsl.train.data.batches import IGNORED, Collator, Example

if TYPE_CHECKING:
    from datasets import Dataset

    from bishare_dsl.train.data.encoding import DataReport


@dataclass(frozen=True)
class Task:
    """An adapter that is trained with others, and its rows.

    Attributes:
        name: the adapter's.
        group: what the adapter is called that is kept; tasks of one group are tried against each other.
        examples: to train on.
        held_out: to evaluate on; empty where there are none.
        rate: its learning rate at most.
        seed: of its first values.
        order: the seed by which its examples are shuffled.
        variant: which of the variants of the spec it has, where several are tried.
        data: what became of its rows, by ``"train"`` and ``"eval"``.
    """

    name: str
    group: str
    examples: Dataset
    held_out: Dataset | tuple[()] = ()
    rate: float = 1e-4
    seed: int = 0
    order: int = 0
    variant: int = 0
    data: Mapping[str, DataReport] = field(default_factory=dict)


@dataclass(frozen=True)
class MicroBatch:
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
class Steps(Sequence[list[MicroBatch]]):
    """The passes of each optimizer step. A task sees in each of its steps what it would see alone.

    Args:
        tasks: which may have different numbers of rows, and end at different steps.
        collator: makes batches.
        batch: rows of each task in a step.
        epochs: how often each task sees its rows; ``most`` cuts its steps, where it is not None.
        at_once: rows in a pass, at most.
        processes: that have passes in each step, where there are as many rows.
        cost: what a pass takes however few rows it has, in tokens.
    """

    tasks: Sequence[Task]
    collator: Collator
    batch: int
    epochs: float
    most: int | None
    at_once: int
    processes: int = 1
    cost: int = 64
    stopped: dict[int, tuple[int, str]] = field(default_factory=dict)
    """Tasks that have no more steps, by number: after which step, and why."""

    @property
    def groups(self) -> list[str]:
        """The names of the adapters that are kept."""
        return [*dict.fromkeys(task.group for task in self.tasks)]

    def count(self, task: Task) -> int:
        """Count the steps of a task."""
        if self.most is not None:
            return self.most
        return ceil(self.epochs * ceil(len(task.examples) / self.batch))

    def epochs_of(self, number: int) -> float:
        """Return how often a task sees its rows."""
        task = self.tasks[number]
        done, _ = self.stopped.get(number, (self.count(task), ""))
        return done / ceil(len(task.examples) / self.batch)

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
        order = _order(len(task.examples), task.order, epoch)
        return [task.examples[i] for i in order[number * self.batch : (number + 1) * self.batch]]

    def passes(self, rows: Sequence[tuple[int, Sequence[Example]]]) -> list[MicroBatch]:
        """Fill passes with the rows of some tasks, so that little is padded and there are not many."""
        found = [(task, sum(map(count_learned, rows)), row) for task, rows in rows for row in rows]
        # By the ids last: a step with all rows has the same passes in each epoch.
        found.sort(key=lambda row: (len(row[2]["input_ids"]), row[0], row[2]["input_ids"]))
        most = min(self.at_once, ceil(len(found) / self.processes))
        cuts = cut_by_length([len(row["input_ids"]) for *_, row in found], most, self.cost)
        return [self._pass(sorted(found[a:b], key=lambda row: row[0])) for a, b in cuts]

    def _pass(self, rows: Sequence[tuple[int, int, Example]]) -> MicroBatch:
        tasks, learned, examples = zip(*rows, strict=True)
        return MicroBatch(self.collator(examples), [*tasks], [*learned])


def cut_by_length(lengths: Sequence[int], at_once: int, cost: int) -> list[tuple[int, int]]:
    """Cut rows, the short ones first, where all parts together take least.

    Each takes as many tokens as its longest row has, for each of its rows, and ``cost`` beside.
    """
    least, starts = [0], [0]
    for end in range(1, len(lengths) + 1):
        tried = range(max(0, end - at_once), end)
        total, start = min((least[i] + (end - i) * lengths[end - 1] + cost, i) for i in tried)
        least.append(total)
        starts.append(start)
    cuts, end = [], len(lengths)
    while end:
        cuts.append((starts[end], end))
        end = starts[end]
    return cuts[::-1]


@lru_cache(1024)
def _order(rows: int, seed: int, epoch: int) -> list[int]:
    """Shuffle rows as accelerate's sampler does for a run of one adapter."""
    generator = torch.Generator().manual_seed(seed + epoch)
    return torch.randperm(rows, generator=generator).tolist()


def count_learned(example: Example) -> int:
    """Count the tokens of an example that are learned: the first is not predicted."""
    return sum(label != IGNORED for label in example["labels"][1:])
