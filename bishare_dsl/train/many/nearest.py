"""New tasks of a library of groups: each takes the group with the least loss on its examples, untrained.

Where there are enough examples with options, the group is compared on other examples with what
``--start mixture`` and ``--start zero`` would give.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from datasets import Dataset
from torch import Tensor

from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.folder.groups import Groups
from bishare_dsl.train.data.batches import Example
from bishare_dsl.train.errors import TrainError
from bishare_dsl.train.loss import among_options
from bishare_dsl.train.many.adapters import TaskAdapters
from bishare_dsl.train.many.groups import CHOOSING_ROWS, Comparison, GroupChoice, nearest_group
from bishare_dsl.train.many.start import (
    Members,
    Pair,
    Record,
    member_losses,
    needed_tokens,
    sums_of_members,
)
from bishare_dsl.train.optimizer import RowAdamW, Settings, schedule_of
from bishare_dsl.train.prepare import LIBRARY_PACE, Prepared
from bishare_dsl.train.reporter import Reporter
from bishare_dsl.train.tasks import Task
from bishare_dsl.train.trunk import cached_trunk

LEAST_JUDGING = 8
"""With fewer examples besides those that choose, a group is not compared."""


@dataclass(frozen=True)
class Rows:
    """The examples of a new task.

    Attributes:
        examples: all that it trains on, which decide its group.
        choosing: those that choose a group, to compare it; empty if there are too few.
        judging: those that judge what the others have chosen.
    """

    examples: list[Example]
    choosing: list[Example]
    judging: list[Example]


def rows_of(task: Task, seed: int) -> Rows:
    """Divide the examples of a task. Held-out examples judge, or else those that the first ones leave."""
    examples = [needed_tokens(row) for row in task.examples]
    choosing = examples
    judging = [needed_tokens(row) for row in task.held_out]
    if not judging:
        # Files are often sorted by their answers.
        draw = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(examples), generator=draw).tolist()
        choosing = [examples[index] for index in order[:CHOOSING_ROWS]]
        judging = [examples[index] for index in order[CHOOSING_ROWS:]]
    if len(judging) < LEAST_JUDGING or not among_options(task.examples):
        return Rows(examples, [], [])
    return Rows(examples, choosing, judging)


def take_groups(
    prepared: Prepared,
    adapters: TaskAdapters,
    groups: Groups,
    indices: Sequence[int],
    reporter: Reporter,
) -> dict[str, GroupChoice]:
    """Give tasks of a run the private numbers of the groups that are nearest; return the choices by task.

    Args:
        prepared: the run, which adds tasks to a library of groups.
        adapters: of its tasks, at their initial values.
        groups: of the library.
        indices: of the tasks.
        reporter: of the run.

    Raises:
        TrainError: no group has a finite loss on the examples of a task (BS732).
    """
    library = Path(str(prepared.request.library))
    tasks = [prepared.steps.tasks[index] for index in indices]
    rows = {task.name: rows_of(task, prepared.args.seed) for task in tasks}
    trained = _train_from_zero(prepared, adapters, rows, reporter)
    members = Members(adapters, library, tasks, list(groups.tasks))
    members.rows = [[*one.examples, *one.judging] for one in rows.values()]
    choices = dict[str, GroupChoice]()
    with members.states_for_answers(reporter):
        losses = member_losses(members, [one.examples for one in rows.values()])
        losses = losses.masked_fill(~losses.isfinite(), math.inf)
        if losses.isinf().all(1).any():
            reason = f"no group of `{library}` has a finite loss on the examples"
            help = "`--start zero` starts without groups"
            raise TrainError(codes.BAD_COMBINATION(reason=reason, help=help))
        nearest, margins = nearest_group(losses)
        for number, (name, one) in enumerate(rows.items()):
            comparison = None
            if one.judging:
                comparison = _compare(members, library, one, trained[name])
            order = losses[number].argsort().tolist()
            means = (losses[number] / len(one.examples)).tolist()
            other = order[1] if len(order) > 1 else None
            choices[name] = GroupChoice(
                group=members.names[int(nearest[number])],
                loss=means[int(nearest[number])],
                next_group=None if other is None else members.names[other],
                next_loss=None if other is None else means[other],
                margin=float(margins[number]),
                examples=len(one.examples),
                comparison=comparison,
            )
    adapters.bank.own.data[list(indices)] = members.members[nearest]
    return choices


def _compare(members: Members, library: Path, rows: Rows, zero: Tensor) -> Comparison:
    """Count right answers of the nearest group, of a sum of groups, and of numbers trained from zero.

    All three know the examples that choose, and not those that judge.
    """
    losses = member_losses(members, [rows.choosing])
    group = members.members[nearest_group(losses)[0]]
    sharpness = (Record.of(library) or Record()).sharpness
    mixture = sums_of_members(members, losses, sharpness)
    values = torch.cat([group, mixture, zero[None].to(group)])
    pairs = list[Pair]()
    for candidate in range(len(values)):
        pairs += [(candidate, row) for row in rows.judging]
    right = members.judge(values, pairs).correct.view(len(values), -1).sum(1).tolist()
    return Comparison(
        chosen_by=len(rows.choosing),
        examples=len(rows.judging),
        group=right[0],
        mixture=right[1],
        zero=right[2],
    )


def _train_from_zero(
    prepared: Prepared, adapters: TaskAdapters, rows: Mapping[str, Rows], reporter: Reporter
) -> dict[str, Tensor]:
    """Return the private numbers that ``--start zero`` would train on the examples that choose, by task.

    Only tasks that are compared are trained. All tasks have their initial values afterwards.
    """
    names = [name for name, one in rows.items() if one.judging]
    if not names:
        return {}
    reporter.note(f"training {', '.join(names)} from zero, for a comparison ...")
    task_of = {task.name: task for task in prepared.steps.tasks}
    tasks = list[Task]()
    for name in names:
        examples = cast(Dataset, rows[name].choosing)
        tasks.append(replace(task_of[name], examples=examples, trains=True, members=()))
    steps = replace(prepared.steps, tasks=tasks, most=LIBRARY_PACE.steps)
    bank = adapters.bank
    model = adapters.model
    numbers = [adapters.names.index(name) for name in names]
    schedule = schedule_of(prepared.args, prepared.warm_up(len(steps)), len(steps))
    initial = bank.own.detach().clone()
    optimizer = RowAdamW([bank.own], Settings.of(prepared.args))
    mode = model.training
    model.train()
    with cached_trunk(model, adapters.plan, steps, nullcontext, reporter):
        for step in range(len(steps)):
            bank.own.grad = None
            for batch in steps[step]:
                adapters.run(batch).losses.sum().backward()
            factor = 1.0 if schedule is None else schedule(step)
            rate = prepared.args.learning_rate * factor
            optimizer.rates = [dict.fromkeys(numbers, rate)]
            optimizer.step()
    model.train(mode)
    bank.own.grad = None
    trained = {
        name: bank.own.detach()[row].clone() for name, row in zip(names, numbers, strict=True)
    }
    bank.own.data[:] = initial
    return trained
