"""Groups among the members of a library, by their private numbers: plain functions.

A member is a vector of its private numbers, all modules in one order. Nothing here knows a model: losses and
right answers come in as functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bishare_dsl.show.table import Table

STARTS, ROUNDS = 20, 100
"""Of k-means: random starts, and rounds of each at most."""
QUARTERS = 4
"""Parts of the members, each held out once."""
CHOOSING_ROWS = 8
"""Rows by which a held-out member takes its group; the other rows judge."""
LEAST_MEMBERS, LEAST_ROWS = 24, 16
"""With fewer members, or rows each, groups cannot be judged."""
ERRORS = 2.0
"""A number of groups is proposed only if it is ahead of one group by so many standard errors."""
SMALLEST = 1e-12


@dataclass(frozen=True)
class Score:
    """How well held-out members do with a number of groups.

    Attributes:
        groups: K.
        correct: the share of right answers, averaged over members.
        ahead: minus that of one group.
        error: the standard error of ``ahead``, paired over members.
    """

    groups: int
    correct: float
    ahead: float
    error: float


def directions(private: Tensor) -> Tensor:
    """Return members' private numbers (M, n) minus their mean, scaled to length 1."""
    centred: Tensor = private - private.mean(0)
    lengths: Tensor = centred.norm(dim=1, keepdim=True).clamp(min=SMALLEST)
    return centred / lengths


def k_means(points: Tensor, count: int, seed: int) -> Tensor:
    """Return the group of each point (M, n), the best of `STARTS` starts by the sum of squared distances.

    Centres start by k-means++. A centre without points moves to the point that is farthest from its
    centre, so every group has a member. Groups are numbered by their first member.

    Raises:
        ValueError: there are fewer points than groups.
    """
    if not 1 <= count <= len(points):
        raise ValueError(f"{count} groups of {len(points)} points")
    draw = torch.Generator().manual_seed(seed)
    best = torch.zeros(len(points), dtype=torch.long)
    least = math.inf
    for _ in range(STARTS):
        labels, spread = _one_start(points, count, draw)
        if spread < least - SMALLEST:
            best = labels
            least = spread
    return _numbered(best)


def _one_start(points: Tensor, count: int, draw: torch.Generator) -> tuple[Tensor, float]:
    centres = _first_centres(points, count, draw)
    labels = torch.full((len(points),), -1)
    for _ in range(ROUNDS):
        distances = torch.cdist(points, centres).square()
        nearest = distances.argmin(1)
        for group in range(count):
            if not (nearest == group).any():
                own = distances.gather(1, nearest[:, None])[:, 0]
                # Never the only point of another group.
                alone = torch.bincount(nearest, minlength=count)[nearest] == 1
                farthest = int(own.masked_fill(alone, -1.0).argmax())
                nearest[farthest] = group
                distances[farthest] = 0.0
        if torch.equal(nearest, labels):
            break
        labels = nearest
        centres = group_means(points, labels)
    spread = float((points - centres[labels]).square().sum())
    return labels, spread


def _first_centres(points: Tensor, count: int, draw: torch.Generator) -> Tensor:
    chosen = [int(torch.randint(len(points), (1,), generator=draw))]
    while len(chosen) < count:
        distances = torch.cdist(points, points[chosen]).square().amin(1)
        # Equal points leave nothing to choose by: take any that is not a centre yet.
        distances = distances + SMALLEST
        distances[chosen] = 0.0
        chosen.append(int(torch.multinomial(distances, 1, generator=draw)))
    return points[chosen].clone()


def _numbered(labels: Tensor) -> Tensor:
    numbers: dict[int, int] = {}
    for label in labels.tolist():
        numbers.setdefault(label, len(numbers))
    return torch.tensor([numbers[label] for label in labels.tolist()])


def group_means(private: Tensor, groups: Tensor) -> Tensor:
    """Return the mean of each group's rows, (K, n), of members' (M, n)."""
    count = int(groups.max()) + 1
    return torch.stack([private[groups == group].mean(0) for group in range(count)])


def quarters(members: int, seed: int) -> list[list[int]]:
    """Return `QUARTERS` parts of the members, in random order."""
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(members, generator=draw).tolist()
    return [sorted(order[part::QUARTERS]) for part in range(QUARTERS)]


def cannot_be_judged(members: int, rows: Sequence[int]) -> str:
    """Return why groups cannot be judged, or an empty text."""
    if members < LEAST_MEMBERS:
        return f"{members} members, and groups need {LEAST_MEMBERS}"
    if min(rows) < LEAST_ROWS:
        return f"a member has {min(rows)} rows, and groups need {LEAST_ROWS} of each"
    return ""


def scores(
    private: Tensor,
    numbers: Sequence[int],
    seed: int,
    losses: Callable[[Tensor, list[int]], Tensor],
    correct: Callable[[Tensor, list[int], Tensor], Tensor],
) -> list[Score]:
    """Score numbers of groups on held-out members, without training.

    Args:
        private: members' private numbers, (M, n).
        numbers: each K; 1 is among them.
        seed: of quarters and of k-means.
        losses: of adapters (K, n) and held-out members returns the summed loss of each member's first
            `CHOOSING_ROWS` rows with each adapter, (members, K).
        correct: of adapters, members and the adapter of each returns the share of right answers on the
            other rows, (members,).
    """
    shares = {count: torch.zeros(len(private)) for count in numbers}
    for held in quarters(len(private), seed):
        others = [member for member in range(len(private)) if member not in set(held)]
        points = directions(private[others])
        for count in numbers:
            groups = k_means(points, count, seed)
            adapters = group_means(private[others], groups)
            choice = losses(adapters, held).argmin(1)
            shares[count][held] = correct(adapters, held, choice)
    judged = []
    for count in numbers:
        ahead = shares[count] - shares[1]
        error = float(ahead.std()) / math.sqrt(len(ahead))
        judged.append(Score(count, float(shares[count].mean()), float(ahead.mean()), error))
    return judged


def proposed(judged: Sequence[Score]) -> int:
    """Return the number of groups with the most right answers of those clearly ahead of one group, else 1."""
    clear = [s for s in judged if s.groups > 1 and s.ahead > ERRORS * s.error]
    if not clear:
        return 1
    return max(clear, key=lambda score: score.correct).groups


@dataclass(frozen=True)
class GroupScores:
    """How numbers of groups do on members that are held out, and which number is proposed.

    Attributes:
        scores: of each number.
        proposal: a number of groups; 1 if none is clearly better than one group.
    """

    scores: tuple[Score, ...]
    proposal: int

    def __str__(self) -> str:
        rows = list[list[object]]()
        for score in self.scores:
            row: list[object] = [score.groups, f"{100 * score.correct:.1f}", "", ""]
            if score.groups > 1:
                row[2:] = [f"{100 * score.ahead:+.1f}", f"{100 * score.error:.1f}"]
            rows.append(row)
        table = Table(["groups", "score", "ahead of 1", "error"], rows, left=())
        return f"{table}\n\n{self._conclusion}"

    @property
    def _conclusion(self) -> str:
        rule = f"by more than {ERRORS:g} errors"
        notice = (
            "A score compares numbers of groups, and is no accuracy of a new task (experimental)."
        )
        if self.proposal == 1:
            return f"no groups are proposed: no number is ahead of 1 {rule}\n{notice}"
        text = f"{self.proposal} groups are proposed: the best score of those ahead of 1 {rule}"
        return f"{text}; `--groups {self.proposal}` trains them\n{notice}"


UNSURE = 3.0
"""A choice by less, in nats, is often wrong: 17 of 38 by eight examples, and 14 of 154 by more.

Counted in benchmarks/few/groups.jsonl, for groups by name in four families; the limit is not registered.
"""


@dataclass(frozen=True)
class Comparison:
    """Right answers of a new task on examples that its group has not been chosen by.

    Attributes:
        chosen_by: the number of examples that chose the group, weighed the sum and trained from zero.
        examples: the number of examples that are judged.
        group: right answers of the nearest group.
        mixture: those of a sum of groups.
        zero: those of numbers that are trained from zero.
    """

    chosen_by: int
    examples: int
    group: int
    mixture: int
    zero: int


@dataclass(frozen=True)
class GroupChoice:
    """The group that a new task takes.

    Attributes:
        group: its name.
        loss: the loss of an example with it, on average.
        next_group: the second nearest; None if there is one group.
        next_loss: the loss of an example with that.
        margin: by how much that one is farther, in nats, summed over examples.
        examples: the number of examples that have chosen.
        comparison: with other ways to start, where there are enough examples.
    """

    group: str
    loss: float
    next_group: str | None
    next_loss: float | None
    margin: float
    examples: int
    comparison: Comparison | None = None

    @property
    def is_unsure(self) -> bool:
        """Whether the next group is nearly as near."""
        return self.margin < UNSURE


def choices_text(choices: Mapping[str, GroupChoice]) -> str:
    """Return tables of the groups that new tasks take, and of what other starts would have."""
    rows = list[list[object]]()
    compared = list[list[object]]()
    for name, choice in choices.items():
        row: list[object] = [name, choice.group, f"{choice.loss:.4f}"]
        if choice.next_loss is None:
            row += ["", "", ""]
        else:
            row += [choice.next_group, f"{choice.next_loss:.4f}", f"{choice.margin:.1f}"]
        row.append("unsure" if choice.is_unsure else "")
        rows.append(row)
        other = choice.comparison
        if other is not None:
            sizes = [other.chosen_by, other.examples]
            compared.append([name, *sizes, other.group, other.mixture, other.zero])
    head = ["task", "group", "loss", "next", "its loss", "nearer by", ""]
    parts = [str(Table(head, rows, left={0, 1, 3, 6}))]
    parts.append("losses are of one example; `nearer by` is in nats, over all examples")
    if compared:
        head = ["task", "chosen by", "judged on", "group", "mixture", "zero"]
        parts.append(str(Table(head, compared)))
        parts.append(
            "right answers on the examples that did not choose, with the group and with other `--start`"
        )
    return "\n\n".join(parts)


def nearest_group(losses: Tensor) -> tuple[Tensor, Tensor]:
    """Return each newcomer's group, the least of its losses (T, K), and by how much the next is farther."""
    ordered = losses.sort(1)
    margin = torch.full((len(losses),), math.inf)
    if losses.shape[1] > 1:
        margin = ordered.values[:, 1] - ordered.values[:, 0]
    return ordered.indices[:, 0], margin
