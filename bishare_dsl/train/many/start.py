"""Start new adapters of a library at zero, or at a weighted sum of the library's members.

The members of a library share their large tensors, so that a weighted sum of their private tensors is a
member too. Members are weighed by their summed loss L on a new task's examples: ``w = softmax(-s L)``.
Sharpness s = 0 gives the mean of all members, and infinity the nearest member.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from bishare_dsl.batched.bank import Bank
from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.folder.card import STARTS, write_card
from bishare_dsl.folder.files import names_in, read_members
from bishare_dsl.reading import MAX_CONFIG, parse_json, read_file
from bishare_dsl.train.data.batches import IGNORED, Collator, Example
from bishare_dsl.train.folder import LIBRARY, record_of
from bishare_dsl.train.optimizer import RowAdamW, Settings, schedule_of
from bishare_dsl.train.prepare import Prepared
from bishare_dsl.train.reporter import Reporter
from bishare_dsl.train.tasks import MicroBatch, Steps, Task, cut
from bishare_dsl.train.trunk import cached_trunk
from bishare_dsl.writing import replace_file

TOKENS = 4096
"""The largest number of tokens in one forward."""
SHARPNESS = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, math.inf)
"""Candidates, from the mean of all members to the nearest one."""
FOLDS = 4
"""Parts into which a new task's examples are divided, at most."""
LIBRARY_ROWS = 8
"""For how many of a new task's own examples the library's record counts."""
WEIGHING, LEFT_OUT = 8, 16
"""Examples of a left-out member that weigh the others, and members that are left out in turn, at most."""
Tasks = Sequence[Sequence[Any]]
"""The examples of each task."""
Chosen = dict[int, tuple[Tensor, str]]
"""By a task's number, its private values and what they are."""


class Record(BaseModel):
    """What leaving members out of a library has shown, in its `STARTS`.

    Attributes:
        sharpness: the best one.
        correct: with it, the part of the judged examples that the other members answered.
        ahead: how much more that is than what tensors trained from zero answered.
        examples: how many were judged, none of which another member has.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    sharpness: float = Field(default=1.0, ge=0)
    correct: float = Field(default=0.0, ge=0, le=1)
    ahead: float = Field(default=0.0, ge=-1, le=1)
    examples: int = 0

    @classmethod
    def of(cls, library: Path) -> Record | None:
        """Read a library's record; None if it has none, or if it cannot be read."""
        try:
            return cls.model_validate(parse_json(read_file(library, STARTS, MAX_CONFIG)))
        except (OSError, ValueError):
            return None


def weights(losses: Tensor, sharpness: float) -> Tensor:
    """Weigh members by their losses.

    Args:
        losses: the summed loss of each member, (..., members); infinity leaves a member out.
        sharpness: from 0 (all weigh the same) to infinity (the best alone).

    Returns:
        (..., members), with a sum of 1.
    """
    if math.isinf(sharpness):
        return F.one_hot(losses.argmin(-1), losses.shape[-1]).to(losses)
    return torch.where(losses.isinf(), -math.inf, -sharpness * losses).softmax(-1)


def sharpest(scores: Mapping[float, tuple[float, float]]) -> float:
    """Return the sharpness with the most correct rows; of equals, the one with the least loss.

    Args:
        scores: the part of the rows that is correct, and the mean loss, by sharpness.
    """
    return min(scores, key=lambda sharpness: (-scores[sharpness][0], scores[sharpness][1]))


def folds(count: int) -> list[list[int]]:
    """Divide the numbers of examples into parts, each to be judged by what the other parts teach."""
    return [list(range(part, count, FOLDS)) for part in range(min(FOLDS, count))]


def members_win(members: Sequence[bool], trained: Sequence[bool], ahead: float) -> bool:
    """Return whether a sum of members is better than tensors trained from zero; a tie goes to training.

    Args:
        members: for each of a new task's examples, whether members weighed by the other folds answer it.
        trained: the same for tensors trained on the other folds.
        ahead: by what part of the rows members were better when members of the library were left out. Shared
            tensors have seen a member that is left out, which flatters training.
    """
    return LIBRARY_ROWS * ahead + sum(members) - sum(trained) > 0


def choose(trial: Tried, tasks: Tasks, start: str, record: Record, *, trains: bool) -> Chosen:
    """Choose the tasks that start from members.

    Args:
        trial: tries adapters of the library.
        tasks: the examples of each new task.
        start: ``mean``, ``nearest``, ``mixture`` or ``auto``.
        record: of the library.
        trains: whether the run trains what ``auto`` leaves.
    """
    sharpness = {"mean": 0.0, "nearest": math.inf}.get(start, record.sharpness)
    each, found = _losses(trial, tasks), Chosen()
    values = _sums(trial, [losses.sum(0) for losses in each], sharpness)
    text = f"{start} of {len(trial.members)} members, sharpness {sharpness:g}"
    if start != "auto" or not trains:
        return {i: (value, text) for i, value in enumerate(values)}
    for i, (rows, losses) in enumerate(zip(tasks, each, strict=True)):
        ours = theirs = list[bool]()
        if len(rows) > 1:
            judging = [*enumerate(folds(len(rows)))]
            rest = [[n for n in range(len(rows)) if n not in fold] for _, fold in judging]
            held_out = [(number, rows[n]) for number, fold in judging for n in fold]
            sums = _sums(trial, [losses[some].sum(0) for some in rest], sharpness)
            taught = trial.trained([[rows[n] for n in some] for some in rest])
            ours, theirs = (trial.judge(part, held_out)[1].tolist() for part in (sums, taught))
        if members_win(ours, theirs, record.ahead):
            found[i] = values[i], f"{text}: {sum(ours)}/{len(ours)} correct, trained {sum(theirs)}"
    return found


def leave_out(trial: Tried, tasks: Tasks, prompts: Sequence[Any]) -> Record | None:
    """Leave each member out in turn, and judge the others on examples that only it has.

    Args:
        trial: tries adapters of the library.
        tasks: the examples of each member, in the order of ``trial.members``.
        prompts: the prompts of these examples.

    Returns:
        None if there are not enough members or examples to judge, or a task has no member.
    """
    firsts = [min(WEIGHING, len(rows) // 2) for rows in tasks[:LEFT_OUT]]
    weighing = [rows[:first] for rows, first in zip(tasks, firsts, strict=False)]
    judged = [
        (i, tasks[i][n])
        for i, first in enumerate(firsts)
        for n in range(first, len(tasks[i]))
        if not any(prompts[i][n] in theirs for k, theirs in enumerate(prompts) if k != i)
    ]
    if not len(trial.members) == len(tasks) >= 3 or not judged or not all(weighing):
        return None
    known, scores = [losses.sum(0) for losses in _losses(trial, weighing)], {}
    for i, losses in enumerate(known):
        losses[i] = math.inf
    for sharpness in SHARPNESS:
        losses, right = trial.judge(_sums(trial, known, sharpness), judged)
        scores[sharpness] = float(right.float().mean()), float(losses.mean())
    best = sharpest(scores)
    alone = trial.judge(trial.trained(weighing), judged)[1].float().mean()
    ahead = scores[best][0] - float(alone)
    return Record(sharpness=best, correct=scores[best][0], ahead=ahead, examples=len(judged))


def _losses(trial: Tried, tasks: Tasks) -> list[Tensor]:
    """Return the members' losses on the examples of each task, ``(examples, members)`` each."""
    # Tasks often share examples, which are judged once.
    rows, count = {repr(row): row for rows in tasks for row in rows}, len(trial.members)
    pairs = [(member, row) for row in rows.values() for member in range(count)]
    known = dict(zip(rows, trial.judge(trial.members, pairs)[0].view(-1, count), strict=True))
    return [torch.stack([known[repr(row)] for row in rows]) for rows in tasks]


def _sums(trial: Tried, losses: Sequence[Tensor], sharpness: float) -> Tensor:
    """Return a weighted sum of members for each tensor of their losses, ``(sums, values)``."""
    return weights(torch.stack([*losses]), sharpness).to(trial.members) @ trial.members


class Tried:
    """A library's adapters, which can be tried on examples: each is a row of a bank.

    Args:
        tenants: the model's adapters.
        library: whose members are candidates.
        tasks: with their examples.
        run: a run, whose steps `trained` does, and the private values before training.

    Attributes:
        members: the private values of each member, ``(members, values)``.
    """

    def __init__(self, tenants: Any, library: Path, tasks: Sequence[Task], run: Any = None) -> None:
        self._tenants, self._library, self._run = tenants, library, run
        self._rows = [[*task.examples] for task in tasks]
        stored = (one.tensors() for one in read_members(library, names_in(library)))
        kept = tenants.bank.kind.own
        values = [torch.cat([tensors[part].flatten() for part in kept]) for tensors in stored]
        self.members = torch.stack(values).to(tenants.bank.own)

    def choose(self, start: str, reporter: Reporter, *, trains: bool = False) -> Chosen:
        """Choose the tasks that start from members, and their values; see `choose`.

        Without a record of the library, sums are weighed by a guess, with a warning (BS738).
        """
        record = Record.of(self._library)
        if record is None and start in ("mixture", "auto"):
            reporter.report(codes.NO_RECORD(path=self._library / STARTS), None)
        self._rows = [[*map(_needed, rows)] for rows in self._rows]
        with self._cached(reporter, trains=trains):
            return choose(self, self._rows, start, record or Record(), trains=trains)

    def record(self, cached: bool) -> None:
        """Leave members out, and write into the library how later tasks should start.

        Args:
            cached: whether the states below the first adapted block are cached already.
        """
        with nullcontext() if cached else self._cached(Reporter(quiet=True), trains=True):
            record = leave_out(self, self._rows, [[*map(_prompt, rows)] for rows in self._rows])
        if record is not None:
            replace_file(self._library / STARTS, record.model_dump_json(indent=1).encode())
            first = next(read_members(self._library, names_in(self._library)))
            write_card(self._library, first.plan, first.config)

    def _cached(self, reporter: Reporter, *, trains: bool) -> AbstractContextManager[bool]:
        """Compute the states below the first adapted block once for each example.

        Without training, they are those of the tokens that predict: all but the last one.
        """
        end, found = None if trains else -1, [row["input_ids"] for one in self._rows for row in one]
        ids = sorted({tuple(row[:end] or row) for row in found})
        rows: Any = [{"input_ids": [*row], "labels": [*row]} for row in ids]
        # Two epochs, because all examples are read more than once.
        steps = Steps([Task("", rows)], Collator(0), 1, 2, None, TOKENS // max(map(len, ids)) or 1)
        return cached_trunk(self._tenants.model, self._tenants.plan, steps, nullcontext, reporter)

    @contextmanager
    def _candidates(self, values: Tensor, *, trains: bool) -> Iterator[tuple[Bank, list[str]]]:
        """Let rows of a batch use adapters with these private values inside the block, by their names."""
        tenants, adapters = self._tenants, self._tenants.handle.adapters
        bank = Bank(tenants.bank.kind, len(values), values.dtype, values.device)
        bank.own.data[:], bank.common.data[:] = values, tenants.bank.common.data
        bank.own.requires_grad_(trains)
        # No other adapter can have such a name.
        names, first = [f"candidate {i}" for i in range(len(values))], adapters[tenants.names[0]]
        mode = tenants.model.training
        tenants.model.train(trains)
        try:
            for row, name in enumerate(names):
                adapters[name] = replace(first, name=name, bank=(bank, row))
            yield bank, names
        finally:
            tenants.model.train(mode)
            for name in names:
                adapters.pop(name, None)

    @torch.no_grad()
    def judge(self, values: Tensor, pairs: Sequence[tuple[int, Example]]) -> tuple[Tensor, Tensor]:
        """Return the loss of each example, and whether it is answered, ``(pairs,)`` each.

        Args:
            values: of candidates, ``(candidates, values)``.
            pairs: the number of a candidate, and an example.
        """
        losses, right = torch.zeros(len(pairs)), torch.zeros(len(pairs), dtype=torch.bool)
        of_row = dict[int, list[int]]()
        for i, (_, row) in enumerate(pairs):
            of_row.setdefault(id(row), []).append(i)
        rows = [pairs[numbers[0]][1] for numbers in of_row.values()]
        numbers, most = [*of_row.values()], max(1, TOKENS // max(len(r["input_ids"]) for r in rows))
        with self._candidates(values, trains=False) as (_, names):
            for part in cut(rows, most):
                left = sorted((i for n in part for i in numbers[n]), key=lambda i: pairs[i][0])
                # A forward with equally many rows of each candidate copies no states.
                while some := left[: most // len(part) * len(part)]:
                    left = left[len(some) :]
                    inputs = Collator(0).predicting([pairs[i][1] for i in some])
                    of = (names[pairs[i][0]] for i in some)
                    batch = MicroBatch(inputs, [*of], {"weights": torch.ones(len(some), 1)})
                    loss, _, correct = self._tenants.run(batch)
                    losses[some], right[some] = loss.float().cpu(), correct.cpu()
        return losses, right

    def trained(self, tasks: Sequence[Sequence[Example]]) -> Tensor:
        """Train private tensors from zero on each task, as the run would: ``(tasks, values)``."""
        prepared, zero = self._run
        a, warm_up = prepared.args, prepared.warm_up
        with self._candidates(zero.expand(len(tasks), -1), trains=True) as (bank, names):
            few = [Task(n, cast(Any, rows)) for n, rows in zip(names, tasks, strict=True)]
            steps = replace(prepared.steps, tasks=few)
            optimizer = RowAdamW([bank.own], Settings.of(a))
            schedules: Any = [schedule_of(a, warm_up(n), n) for n in map(steps.count, few)]
            for step in range(len(steps)):
                bank.own.grad = None
                for batch in steps[step]:
                    self._tenants.run(batch)[0].sum().backward()
                rates = {i: a.learning_rate * schedules[i](step) for i in steps.running(step)}
                optimizer.rates = [rates]
                optimizer.step()
        return bank.own.detach()


def start_tasks(prepared: Prepared, tenants: Any, reporter: Reporter) -> Callable[[bool], None]:
    """Start new tasks of a library; what ``auto`` takes trains no further.

    Returns:
        A function that records, after training, how later tasks of a new library should start. It takes
        whether the states below the first adapted block are cached.
    """
    request, tasks = prepared.request, cast("list[Task]", prepared.steps.tasks)
    of_run = prepared, tenants.bank.own.detach()[0].clone()
    if request.resume is not None:  # The checkpoint has their values.
        starts = record_of(request.resume).get("starts", [(t.start, t.most) for t in tasks])
        tasks[:] = [replace(t, start=s, most=n) for t, (s, n) in zip(tasks, starts, strict=True)]
    elif request.library is not None and request.start != "zero":
        tried = Tried(tenants, Path(request.library), tasks, of_run)
        found = tried.choose(request.start, reporter, trains=len(prepared.steps) > 0)
        most = 0 if request.start == "auto" else None
        for number, (values, text) in found.items():
            tenants.bank.own.data[number] = values
            tasks[number] = replace(tasks[number], start=text, most=most)

    def record(cached: bool) -> None:
        if tenants.shared and request.library is None and request.start != "zero":
            library = request.output_dir / LIBRARY
            Tried(tenants, library, tasks, of_run).record(cached)

    return record


def _needed(row: Example) -> Example:
    """Leave out the tokens after the last one with a loss, which change none before them."""
    stop = max((i for i, label in enumerate(row["labels"]) if label != IGNORED), default=1) + 1
    return {**row, "input_ids": row["input_ids"][:stop], "labels": row["labels"][:stop]}


def _prompt(row: Example) -> tuple[int, ...]:
    return tuple(t for t, x in zip(row["input_ids"], row["labels"], strict=True) if x == IGNORED)
