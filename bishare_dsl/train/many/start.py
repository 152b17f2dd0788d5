"""Start new adapters of a library at zero, or at a weighted sum of the library's members.

The members of a library share their large tensors, so that a weighted sum of their private tensors is a
member too. Members are weighed by their summed loss L on a new task's examples: ``w = softmax(-s L)``.
Sharpness s = 0 gives the mean of all members, and infinity the nearest member. A member with a loss that is
not finite has no weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from datasets import Dataset
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from bishare_dsl.batched.bank import Bank
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.folder.card import STARTS, write_card
from bishare_dsl.folder.contents import StoredAdapter
from bishare_dsl.folder.files import names_in, read_members
from bishare_dsl.folder.groups import read_groups
from bishare_dsl.reading import MAX_CONFIG, parse_json, read_file
from bishare_dsl.train.data.batches import IGNORED, Collator, Example
from bishare_dsl.train.errors import TrainError
from bishare_dsl.train.folder import LIBRARY
from bishare_dsl.train.many.adapters import TaskAdapters
from bishare_dsl.train.newcomers import LEAST_MEMBERS
from bishare_dsl.train.prepare import Prepared
from bishare_dsl.train.reporter import Reporter
from bishare_dsl.train.tasks import MicroBatch, Steps, Task, cut
from bishare_dsl.train.trunk import cached_trunk
from bishare_dsl.writing import replace_file

TOKENS = 4096
"""The largest number of tokens in one forward."""
SHARPNESS = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, math.inf)
"""Candidates, from the mean of all members to the nearest one."""
WEIGHING = 8
"""Examples of a left-out member that weigh the others, at most."""
LEFT_OUT = 16
"""Members that are left out in turn, at most."""

Pair = tuple[int, Any]
"""The number of a candidate, and an example on which it is judged."""


class Record(BaseModel):
    """What leaving members out of a library has shown, in its `STARTS`.

    Attributes:
        sharpness: the best one.
        correct: with it, the part of the judged examples that the other members answered.
        examples: how many were judged, none of which another member has.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    sharpness: float = Field(default=1.0, ge=0)
    correct: float = Field(default=0.0, ge=0, le=1)
    examples: int = 0

    @classmethod
    def of(cls, library: Path) -> Record | None:
        """Read a library's record; None if it has none, or if it cannot be read."""
        try:
            return cls.model_validate(parse_json(read_file(library, STARTS, MAX_CONFIG)))
        except (OSError, ValueError):
            return None


@dataclass(frozen=True)
class Judged:
    """How candidates did on examples.

    Attributes:
        losses: of each pair, ``(pairs,)``.
        correct: whether the example is answered, ``(pairs,)``.
    """

    losses: Tensor
    correct: Tensor


class Trial(Protocol):
    """Tries adapters of a library, whose members have these private values, ``(members, values)``."""

    members: Tensor

    def judge(self, values: Tensor, pairs: Sequence[Pair]) -> Judged:
        """Judge candidates with these private values, ``(candidates, values)``."""
        ...


@dataclass(frozen=True)
class Score:
    """How well sums of members of one sharpness do: the part of the rows they answer, and the mean loss."""

    correct: float
    loss: float


def weights(losses: Tensor, sharpness: float) -> Tensor:
    """Weigh members by their losses.

    Args:
        losses: the summed loss of each member, (..., members), of which one at least is finite; others have
            no weight.
        sharpness: from 0 (all weigh the same) to infinity (the best alone).

    Returns:
        (..., members), with a sum of 1.
    """
    finite = losses.isfinite()
    if math.isinf(sharpness):
        least = losses.masked_fill(~finite, math.inf).argmin(-1)
        return F.one_hot(least, losses.shape[-1]).to(losses)
    return (-sharpness * losses).masked_fill(~finite, -math.inf).softmax(-1)


def sharpest(scores: Mapping[float, Score]) -> float:
    """Return the sharpness with the most correct rows; of equals, the one with the least loss."""

    def order(sharpness: float) -> tuple[float, float]:
        score = scores[sharpness]
        return -score.correct, score.loss if math.isfinite(score.loss) else math.inf

    return min(scores, key=order)


def member_losses(trial: Trial, tasks: Sequence[Sequence[Any]]) -> Tensor:
    """Return the members' summed losses on the examples of each task, ``(tasks, members)``."""
    # Tasks often share examples, which are judged once.
    distinct = {repr(row): row for rows in tasks for row in rows}
    count = len(trial.members)
    pairs = [(member, row) for row in distinct.values() for member in range(count)]
    losses = trial.judge(trial.members, pairs).losses.view(-1, count)
    of_row = dict(zip(distinct, losses, strict=True))
    each = [torch.stack([of_row[repr(row)] for row in rows]) for rows in tasks]
    return torch.stack([losses.sum(0) for losses in each])


def sums_of_members(trial: Trial, losses: Tensor, sharpness: float) -> Tensor:
    """Return a weighted sum of members for each row of their losses, ``(rows, values)``."""
    return weights(losses, sharpness).to(trial.members) @ trial.members


def leave_out(
    trial: Trial, tasks: Sequence[Sequence[Any]], prompts: Sequence[Sequence[Any]]
) -> Record | None:
    """Leave each member out in turn, and judge the others on examples that only it has.

    Args:
        trial: tries adapters of the library.
        tasks: the examples of each member, in the order of ``trial.members``.
        prompts: the prompts of these examples.

    Returns:
        None if there are not enough members or examples to judge, or a task has no member.
    """
    if len(trial.members) != len(tasks) or len(tasks) < LEAST_MEMBERS:
        return None
    weighing = list[Sequence[Any]]()
    judged = list[Pair]()
    for number, rows in enumerate(tasks[:LEFT_OUT]):
        first = min(WEIGHING, len(rows) // 2)
        weighing.append(rows[:first])
        others = [theirs for other, theirs in enumerate(prompts) if other != number]
        for row, prompt in zip(rows[first:], prompts[number][first:], strict=True):
            if not any(prompt in theirs for theirs in others):
                judged.append((number, row))
    if not judged or not all(weighing):
        return None
    losses = member_losses(trial, weighing)
    losses[range(len(weighing)), range(len(weighing))] = math.inf
    if not losses.isfinite().any(1).all():
        return None
    scores = dict[float, Score]()
    for sharpness in SHARPNESS:
        result = trial.judge(sums_of_members(trial, losses, sharpness), judged)
        correct = float(result.correct.float().mean())
        scores[sharpness] = Score(correct, loss=float(result.losses.mean()))
    best = sharpest(scores)
    return Record(sharpness=best, correct=scores[best].correct, examples=len(judged))


def private_numbers(members: Iterable[StoredAdapter], names: Sequence[str]) -> Tensor:
    """Return the private numbers of members, (members, numbers), tensors in the order of their names."""
    rows = list[Tensor]()
    for member in members:
        tensors = member.tensors()
        rows.append(torch.cat([tensors[name].flatten().float() for name in names]))
    return torch.stack(rows)


class Members:
    """The members of a library, and sums of them, tried on the examples of tasks as rows of a bank.

    Args:
        adapters: of the model, one at least.
        library: whose members are candidates.
        tasks: with their examples.
        names: of the members that are candidates; by default all.

    Attributes:
        rows: the examples of each task.
        names: of the members.
        members: the private values of each member, ``(members, values)``.
    """

    def __init__(
        self,
        adapters: TaskAdapters,
        library: Path,
        tasks: Sequence[Task],
        names: Sequence[str] | None = None,
    ) -> None:
        self._adapters = adapters
        self._library = library
        self.rows: list[list[Example]] = [list(task.examples) for task in tasks]
        self.names = tuple(names or names_in(library))
        members = read_members(library, self.names)
        private = private_numbers(members, list(adapters.bank.kind.own))
        self.members = private.to(adapters.bank.own)

    def mixtures(self, reporter: Reporter) -> tuple[Tensor, str]:
        """Return a weighted sum of members for each task, ``(tasks, values)``, and in words what they are.

        Without a record of the library, sums are weighed by a guess, with a warning (BS738). A library of
        groups has none: with sharpness 1, weights are the probabilities of its groups. A member whose
        loss is not finite is left out, with a warning (BS739).

        Raises:
            TrainError: no member has a finite loss (BS732).
        """
        record = Record.of(self._library)
        if record is None:
            record = Record()
            if read_groups(self._library) is None:
                reporter.report(codes.NO_RECORD(path=self._library / STARTS), None)
        self.rows = [[needed_tokens(row) for row in rows] for rows in self.rows]
        with self._cached(reporter, predicting=True):
            losses = member_losses(self, self.rows)
        finite = losses.isfinite()
        if not finite.any(1).all():
            reason = f"no member of `{self._library}` has a finite loss on the examples"
            help = "`--start zero` starts without members"
            raise TrainError(codes.BAD_COMBINATION(reason=reason, help=help))
        for name, is_finite in zip(self.names, finite.all(0).tolist(), strict=True):
            if not is_finite:
                reporter.report(codes.MEMBER_LEFT_OUT(name=name, library=self._library), None)
        text = f"mixture of {int(finite.any(0).sum())} members, sharpness {record.sharpness:g}"
        return sums_of_members(self, losses, record.sharpness), text

    def record(self, cached: bool) -> None:
        """Leave members out, and write into the library the best sharpness for later tasks.

        Args:
            cached: whether the states below the first adapted block are cached already.
        """
        prompts = [[_prompt(row) for row in rows] for rows in self.rows]
        with self.states_below(cached=cached):
            record = leave_out(self, self.rows, prompts)
        if record is not None:
            replace_file(self._library / STARTS, record.model_dump_json(indent=1).encode())
            first = next(iter(read_members(self._library, self.names[:1])))
            write_card(self._library, first.plan, first.config)

    def states_below(self, *, cached: bool) -> AbstractContextManager[Any]:
        """Cache the states below the first adapted block within a block, unless they are cached."""
        if cached:
            return nullcontext()
        return self._cached(Reporter(quiet=True), predicting=False)

    def states_for_answers(self, reporter: Reporter) -> AbstractContextManager[bool]:
        """Cache the states below the first adapted block within a block, to judge answers alone."""
        return self._cached(reporter, predicting=True)

    def _cached(self, reporter: Reporter, *, predicting: bool) -> AbstractContextManager[bool]:
        """Compute the states below the first adapted block once for each example.

        Args:
            reporter: of the run.
            predicting: leave out each last token, which predicts none.
        """
        distinct = set[tuple[int, ...]]()
        for rows in self.rows:
            for row in rows:
                ids = row["input_ids"]
                distinct.add(tuple(ids[:-1] if predicting and len(ids) > 1 else ids))
        examples = [{"input_ids": list(ids), "labels": list(ids)} for ids in sorted(distinct)]
        longest = max(len(ids) for ids in distinct)
        # Two epochs, because all examples are read more than once.
        steps = Steps(
            tasks=[Task("", cast(Dataset, examples))],
            collator=Collator(0),
            batch=1,
            epochs=2,
            most=None,
            at_once=max(1, TOKENS // longest),
        )
        adapters = self._adapters
        return cached_trunk(adapters.model, adapters.plan, steps, nullcontext, reporter)

    @contextmanager
    def _candidates(self, values: Tensor) -> Iterator[list[str]]:
        """Let rows of a batch use adapters with these private values inside the block, by their names."""
        bank = self._adapters.bank
        trial = Bank(bank.kind, len(values), values.dtype, values.device)
        trial.own.data[:] = values
        trial.common.data[:] = bank.common.data
        adapters = self._adapters.handle.adapters
        first = adapters[self._adapters.names[0]]
        # No other adapter can have such a name.
        names = [f"candidate {number}" for number in range(len(values))]
        model = self._adapters.model
        mode = model.training
        model.eval()
        try:
            for row, name in enumerate(names):
                adapters[name] = replace(first, name=name, bank=(trial, row))
            yield names
        finally:
            model.train(mode)
            for name in names:
                adapters.pop(name, None)

    @torch.no_grad()
    def judge(self, values: Tensor, pairs: Sequence[Pair]) -> Judged:
        """Return the loss of each example, and whether it is answered.

        Args:
            values: of candidates, ``(candidates, values)``.
            pairs: the number of a candidate, and an example.
        """
        losses = torch.zeros(len(pairs))
        correct = torch.zeros(len(pairs), dtype=torch.bool)
        pairs_of_row = dict[int, list[int]]()
        for index, (_, row) in enumerate(pairs):
            pairs_of_row.setdefault(id(row), []).append(index)
        groups = list(pairs_of_row.values())
        rows = [pairs[indices[0]][1] for indices in groups]
        longest = max(len(row["input_ids"]) for row in rows)
        most_rows = max(1, TOKENS // longest)
        with self._candidates(values) as names:
            for part in cut(rows, most_rows):
                indices = [index for number in part for index in groups[number]]
                indices.sort(key=lambda index: pairs[index][0])
                # A forward with equally many rows of each candidate copies no states.
                size = most_rows // len(part) * len(part)
                for first in range(0, len(indices), size):
                    some = indices[first : first + size]
                    inputs = Collator(0).predicting([pairs[index][1] for index in some])
                    adapters: list[str | None] = [names[pairs[index][0]] for index in some]
                    ones = torch.ones(len(some), 1)
                    result = self._adapters.run(MicroBatch(inputs, adapters, {"weights": ones}))
                    losses[some] = result.losses.float().cpu()
                    correct[some] = result.correct.cpu()
        return Judged(losses, correct)


def start_tasks(prepared: Prepared, adapters: TaskAdapters, reporter: Reporter) -> None:
    """Start new tasks of a library from a sum of its members, if that is decided.

    Raises:
        TrainError: no member has a finite loss (BS732).
    """
    request = prepared.request
    tasks = prepared.steps.tasks
    if request.library is None or request.resume is not None:  # The checkpoint has the values.
        return
    library = Path(request.library)
    indices = [index for index, task in enumerate(tasks) if task.begins == "mixture"]
    if not indices:
        return
    groups = read_groups(library)
    names = None if groups is None else list(groups.tasks)
    members = Members(adapters, library, [tasks[index] for index in indices], names)
    values, text = members.mixtures(reporter)
    adapters.bank.own.data[indices] = values
    for index in indices:
        tasks[index] = replace(tasks[index], start=text)


def record_starts(prepared: Prepared, adapters: TaskAdapters, cached: bool) -> None:
    """Record in a new library how later tasks should start, unless the request says zero.

    Args:
        prepared: the run, which has written the library.
        adapters: of its tasks.
        cached: whether the states below the first adapted block are cached.
    """
    request = prepared.request
    if prepared.groups is not None:
        return  # Groups differ, so that leaving one out says nothing of a task of another group.
    if adapters.shared and request.library is None and request.start != "zero":
        library = request.output_dir / LIBRARY
        Members(adapters, library, prepared.steps.tasks).record(cached)


def needed_tokens(row: Example) -> Example:
    """Leave out the tokens after the last one with a loss, which change none before them."""
    learned = [index for index, label in enumerate(row["labels"]) if label != IGNORED]
    stop = max(learned, default=1) + 1
    return {**row, "input_ids": row["input_ids"][:stop], "labels": row["labels"][:stop]}


def _prompt(row: Example) -> tuple[int, ...]:
    pairs = zip(row["input_ids"], row["labels"], strict=True)
    return tuple(token for token, label in pairs if label == IGNORED)
