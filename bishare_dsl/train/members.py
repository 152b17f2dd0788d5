"""Choose where a library's new adapter starts: at zero, or at a weighted sum of the library's members.

The members of a library share their large tensors, so that a weighted sum of their private tensors is a
member too. Members are weighed by their summed loss L on a new task's examples: ``w = softmax(-s L)``.
Sharpness s = 0 gives the mean of all members, and infinity the nearest member.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from bishare_dsl.reading import MAX_CONFIG, parse_json, read_file

SHARPNESS = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, math.inf)
"""Candidates, from the mean of all members to the nearest one."""
FOLDS = 4
"""Parts into which a new task's examples are divided, at most."""
LIBRARY_ROWS = 8
"""For how many of a new task's own examples the library's record counts."""
WEIGHING, LEFT_OUT = 8, 16
"""Examples of a left-out member that weigh the others, and members that are left out in turn, at most."""
RECORD = "start.json"
Tasks = Sequence[Sequence[Any]]
"""The examples of each task."""
Chosen = dict[int, tuple[Tensor, str]]
"""By a task's number, its private values and what they are."""


class Record(BaseModel):
    """What leaving members out of a library has shown, in its `RECORD`.

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
    def of(cls, library: Path) -> Record:
        """Read a library's record; one without evidence if it has none, or if it cannot be read."""
        try:
            return cls.model_validate(parse_json(read_file(library, RECORD, MAX_CONFIG)))
        except (OSError, ValueError):
            return cls()


class Trial(Protocol):
    """A library's adapters, which can be tried on examples.

    Attributes:
        members: the private values of each member, ``(members, values)``.
    """

    members: Tensor

    def judge(self, values: Tensor, pairs: Sequence[tuple[int, Any]]) -> tuple[Tensor, Tensor]:
        """Return the loss of each example, and whether it is answered, ``(pairs,)`` each.

        Args:
            values: of candidates, ``(candidates, values)``.
            pairs: the number of a candidate, and an example.
        """

    def trained(self, tasks: Sequence[Sequence[Any]]) -> Tensor:
        """Train private tensors from zero on the examples of each task, ``(tasks, values)``."""


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


def choose(trial: Trial, tasks: Tasks, start: str, record: Record, *, trains: bool) -> Chosen:
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


def leave_out(trial: Trial, tasks: Tasks, prompts: Sequence[Any]) -> Record | None:
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


def _losses(trial: Trial, tasks: Tasks) -> list[Tensor]:
    """Return the members' losses on the examples of each task, ``(examples, members)`` each."""
    count = len(trial.members)
    pairs = [(member, row) for rows in tasks for row in rows for member in range(count)]
    return [*trial.judge(trial.members, pairs)[0].view(-1, count).split([*map(len, tasks)])]


def _sums(trial: Trial, losses: Sequence[Tensor], sharpness: float) -> Tensor:
    """Return a weighted sum of members for each tensor of their losses, ``(sums, values)``."""
    return weights(torch.stack([*losses]), sharpness).to(trial.members) @ trial.members
