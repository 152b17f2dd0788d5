"""Groups that a run finds among the members of a library, and scores of their number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bishare_dsl.diagnostics.codes import train as codes
from bishare_dsl.folder.files import names_in, read_members
from bishare_dsl.folder.groups import Groups
from bishare_dsl.train.errors import TrainError
from bishare_dsl.train.loss import among_options
from bishare_dsl.train.many.adapters import TaskAdapters
from bishare_dsl.train.many.groups import (
    CHOOSING_ROWS,
    GroupScores,
    cannot_be_judged,
    directions,
    group_means,
    k_means,
    proposed,
    scores,
)
from bishare_dsl.train.many.start import Members, Pair, private_numbers
from bishare_dsl.train.prepare import Prepared
from bishare_dsl.train.tasks import Task

COUNTS = (1, 2, 3, 4)
"""The numbers of groups that are scored."""


def check_scores(tasks: Sequence[Task]) -> None:
    """Check that numbers of groups can be scored on tasks.

    Raises:
        TrainError: tasks or rows are too few, or a task has no options (BS737).
    """
    reason = cannot_be_judged(len(tasks), [len(task.examples) for task in tasks])
    if reason:
        help = "give more, or train the number of groups that you expect, such as `--groups 3`"
        problem = codes.BAD_GROUPS(reason=f"groups cannot be judged: {reason}", help=help)
        raise TrainError(problem)
    for task in tasks:
        if not among_options(task.examples):
            name = task.data["train"].name
            reason = f"the rows of `{name}` have no `options`, and scores count right answers"
            help = "add `options` to the rows, or train the number of groups that you expect"
            raise TrainError(codes.BAD_GROUPS(reason=reason, help=help))


def find_groups(library: Path, count: int, seed: int, data: str) -> Groups:
    """Return groups of a library's members by k-means on their private numbers.

    Args:
        library: of the members.
        count: the number of groups.
        seed: of k-means.
        data: the digest of the members' examples.

    Raises:
        TrainError: a task was lost, so that there are fewer members than groups (BS749).
    """
    names = names_in(library)
    if count > len(names):
        reason = f"{count} groups cannot be made of the {len(names)} tasks that `{library}` has"
        help = f"give a number from 2 to {len(names)}, and another `--output_dir`"
        raise TrainError(codes.BAD_GROUPS(reason=reason, help=help))
    members = list(read_members(library, names))
    plan = members[0].plan
    private = [t.name for t in plan.tensors if t.trainable and t.name not in plan.common]
    points = directions(private_numbers(members, sorted(private)))
    labels = k_means(points, count, seed).tolist()
    tasks = dict[str, tuple[str, ...]]()
    for group in range(count):
        theirs = [name for name, label in zip(names, labels, strict=True) if label == group]
        tasks[f"group-{group + 1}"] = tuple(theirs)
    return Groups(tasks=tasks, seed=seed, data=data)


def start_from_means(adapters: TaskAdapters, library: Path, groups: Groups) -> None:
    """Start each group at the mean of its members' private numbers, with what the library shares.

    Args:
        adapters: one for each group, in order.
        library: of the members.
        groups: the groups.
    """
    bank = adapters.bank
    names = names_in(library)
    members = list(read_members(library, names))
    private = private_numbers(members, list(bank.kind.own))
    group_of = dict[str, int]()
    for number, tasks in enumerate(groups.tasks.values()):
        group_of.update(dict.fromkeys(tasks, number))
    labels = torch.tensor([group_of[name] for name in names])
    bank.own.data[:] = group_means(private, labels).to(bank.own)
    shared = members[0].tensors()
    common = [shared[name].flatten() for name in bank.kind.common]
    bank.common.data[0] = torch.cat(common).to(bank.common)


def score_groups(
    prepared: Prepared, adapters: TaskAdapters, library: Path, *, cached: bool
) -> GroupScores:
    """Score numbers of groups on members of a library that are held out, without training.

    Args:
        prepared: the run, whose tasks are the members.
        adapters: of its tasks.
        library: that the run has written.
        cached: whether the states below the first adapted block are cached.
    """
    trial = _HeldOut(Members(adapters, library, prepared.steps.tasks), prepared.args.seed)
    members = trial.members
    with members.states_below(cached=cached):
        private = members.members.float().cpu()
        judged = scores(private, COUNTS, prepared.args.seed, trial.losses, trial.correct)
    return GroupScores(tuple(judged), proposed(judged))


class _HeldOut:
    """Judges adapters of a library on rows of its members: some choose a group, and the others judge it."""

    def __init__(self, members: Members, seed: int) -> None:
        self.members = members
        self.choosing = list[list[Any]]()
        self.judging = list[list[Any]]()
        draw = torch.Generator().manual_seed(seed)
        for rows in members.rows:
            # Files are often sorted by their answers.
            order = torch.randperm(len(rows), generator=draw).tolist()
            self.choosing.append([rows[index] for index in order[:CHOOSING_ROWS]])
            self.judging.append([rows[index] for index in order[CHOOSING_ROWS:]])

    def losses(self, adapters: Tensor, held: list[int]) -> Tensor:
        """Return the summed loss of members on the rows that choose, with each adapter, (members, K)."""
        pairs = list[Pair]()
        for member in held:
            for adapter in range(len(adapters)):
                pairs += [(adapter, row) for row in self.choosing[member]]
        judged = self.members.judge(adapters.to(self.members.members), pairs)
        return judged.losses.view(len(held), len(adapters), CHOOSING_ROWS).sum(-1)

    def correct(self, adapters: Tensor, held: list[int], choice: Tensor) -> Tensor:
        """Return the share of right answers of members on the rows that judge, (members,)."""
        pairs = list[Pair]()
        for member, adapter in zip(held, choice.tolist(), strict=True):
            pairs += [(adapter, row) for row in self.judging[member]]
        judged = self.members.judge(adapters.to(self.members.members), pairs)
        sizes = [len(self.judging[member]) for member in held]
        return torch.stack([part.float().mean() for part in judged.correct.split(sizes)])
