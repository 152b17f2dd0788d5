"""New tasks from the members of a library: weighed sums, the choice between them and training, and rivals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bishare_dsl.train.many.start import SHARPNESS, Score, sharpest, weights
from few.late import Site
from few.training import STEPS, Batch, Library, Subject, adapted, is_private, judged, train

WEIGHING = 8
"""Of the examples of a member that is left out, these weigh the others; the rest judge."""
LEFT = 16
"""Members that are left out in turn, at most."""
AT_ONCE = 24
"""Rows of each member at once."""


FOLDS = 4
"""Parts into which a new task's examples are divided, at most."""
LIBRARY_ROWS = 8
"""For how many of a new task's own examples the record of 0.5's library counted."""


def folds(count: int) -> list[list[int]]:
    """Divide the numbers of examples into parts, each to be judged by what the other parts teach."""
    return [list(range(part, count, FOLDS)) for part in range(min(FOLDS, count))]


def members_win(members: Sequence[bool], trained: Sequence[bool], ahead: float) -> bool:
    """Return whether a sum of members is better than tensors trained from zero, by the rule of 0.5."""
    return LIBRARY_ROWS * ahead + sum(members) - sum(trained) > 0


class Chosen(NamedTuple):
    """What `auto` chose.

    Attributes:
        chosen: the tensors, (G, T, ...).
        zero: those trained from zero.
        wins: where members were chosen, (G, T).
        folds: correct answers of members and of training on the folds, (G, T) each.
    """

    chosen: dict[Site, Tensor]
    zero: dict[Site, Tensor]
    wins: Tensor
    folds: list[list[list[int]]]


@torch.no_grad()
def losses(subject: Subject, library: Library, batch: Batch) -> Tensor:
    """Return each member's loss on each example of each task, (G, T, M, n)."""
    count, tasks = batch.rows.shape[:2]
    members = max(p.shape[1] for p in library.values())
    found = []
    for some, labels in zip(batch.rows.unbind(1), batch.labels.unbind(1), strict=True):
        parts = []
        for rows, answers in zip(some.split(AT_ONCE, 1), labels.split(AT_ONCE, 1), strict=True):
            lanes = (-1, members, -1)
            states = subject.late.states(library, subject.items, rows[:, None].expand(*lanes))
            options = batch.options[:, len(found), None].expand(*lanes)
            logits = subject.late.logits(states, options)
            wanted = answers[:, None].expand(*lanes)
            each = F.cross_entropy(logits.flatten(0, 2), wanted.flatten(), reduction="none")
            parts.append(each.view(count, members, -1, batch.parts).sum(-1))
        found.append(torch.cat(parts, 2))
    assert len(found) == tasks
    return torch.stack(found, 1)


def mixed(library: Library, mix: Tensor) -> dict[Site, Tensor]:
    """Return the library's shared tensors, and sums of its members' by weights (G, T, M)."""
    return {
        site: torch.einsum("gtm,gmij->gtij", mix, p) if is_private(site) else p
        for site, p in library.items()
    }


def from_zero(
    subject: Subject, library: Library, batch: Batch, rates: Sequence[float]
) -> dict[Site, Tensor]:
    """Train cores from zero on the library's A and B; rates are of each G."""
    lanes = batch.rows.shape[:2]
    own = {s: torch.zeros(*lanes, *p.shape[2:]) for s, p in library.items() if is_private(s)}
    tensors = {**library, **own}
    steps = STEPS[batch.rows.shape[2] // batch.parts]
    train(adapted(subject, tensors, batch), list(own.values()), batch, torch.tensor(rates), steps)
    return tensors


def left_out(
    subject: Subject, library: Library, batch: Batch, rates: Sequence[float]
) -> tuple[list[float], list[float], list[dict[str, object]]]:
    """Leave each member of libraries out in turn, and judge the others on rows that they never saw.

    Args:
        subject: the family.
        library: libraries, (G, ...), of M members.
        batch: the examples with which members were trained, (G, M, n).
        rates: for training from zero, of each G.

    Returns:
        For each library the best sharpness, by what part of the rows members are ahead of a core that is
        trained from zero, and the scores.
    """
    first, new = WEIGHING * batch.parts, _unseen(batch)[:, :LEFT, WEIGHING:]
    judge = batch._replace(
        rows=batch.rows[:, :LEFT, :first],
        labels=batch.labels[:, :LEFT, :first],
        tested=batch.rows[:, :LEFT, first:],
        answers=batch.labels[:, :LEFT, first:],
        options=batch.options[:, :LEFT],
    )
    known = losses(subject, library, judge).sum(-1)
    known = known.masked_fill(torch.eye(*known.shape[1:], dtype=torch.bool), math.inf)
    records: list[dict[str, object]] = [{} for _ in known]
    scores: list[dict[float, Score]] = [{} for _ in known]
    for sharpness in SHARPNESS:
        tensors = mixed(library, weights(known, sharpness))
        for g, score in enumerate(_scores(subject, tensors, judge, new)):
            scores[g][sharpness] = Score(*score)
    zero = _scores(subject, from_zero(subject, library, judge, rates), judge, new)
    best, ahead = [], []
    for g, found in enumerate(scores):
        best.append(sharpest(found))
        ahead.append(found[best[g]].correct - zero[g][0])
        records[g] = {
            "sharpness": best[g],
            "ahead": ahead[g],
            "zero": zero[g],
            "scores": {str(sharpness): score for sharpness, score in found.items()},
            "rows": int(new[g].sum()),
        }
    return best, ahead, records


def _unseen(batch: Batch) -> Tensor:
    """Return which examples of each member no other member has, (G, M, n)."""
    items = batch.rows[..., :: batch.parts]
    found = torch.zeros(items.shape, dtype=torch.bool)
    for g, members in enumerate(items.tolist()):
        counts = Counter(item for member in members for item in set(member))
        found[g] = torch.tensor([[counts[item] == 1 for item in member] for member in members])
    return found


def _scores(
    subject: Subject, tensors: Library, batch: Batch, new: Tensor
) -> list[tuple[float, float]]:
    loss, right = judged(adapted(subject, tensors, batch), batch)
    count = new.sum((1, 2)).clamp(min=1)
    parts = [(part * new).sum((1, 2)) / count for part in (right.float(), loss)]
    return [(float(r), float(x)) for r, x in zip(*parts, strict=True)]


def folded(batch: Batch) -> tuple[Batch, list[list[int]]]:
    """Return tasks once for each fold, (G, F * T), trained on the other folds and tested on it."""
    count, parts = batch.rows.shape[2] // batch.parts, list[list[Tensor]]()
    divided = folds(count)

    def rows(of: Tensor, some: Sequence[int]) -> Tensor:
        return of.unflatten(2, (-1, batch.parts))[:, :, list(some)].flatten(2)

    for fold in divided:
        rest = [i for i in range(count) if i not in fold]
        own = [rows(of, some) for some in (rest, fold) for of in (batch.rows, batch.labels)]
        parts.append([*own, batch.options])
    together = (torch.cat(of, 1) for of in zip(*parts, strict=True))
    return Batch(*together, parts=batch.parts), divided


def auto(
    subject: Subject,
    library: Library,
    batch: Batch,
    known: Tensor,
    rates: Sequence[float],
    left: tuple[Sequence[float], Sequence[float]],
) -> Chosen:
    """Choose between a sum of members and training from zero, task by task.

    Args:
        subject: the family.
        library: (G, ...).
        batch: the new tasks' examples.
        known: the members' losses on them, (G, T, M, n).
        rates: for training from zero, of each G.
        left: of each library the sharpness, and how far members are ahead of training.
    """

    def weighed(of: Tensor) -> Tensor:
        pairs = zip(of.sum(-1), left[0], strict=True)
        return torch.stack([weights(sums, sharpness) for sums, sharpness in pairs])

    again, divided = folded(batch)
    count = known.shape[3]
    rest = [[i for i in range(count) if i not in fold] for fold in divided]
    mix = torch.cat([weighed(known[..., some]) for some in rest], 1)
    sums = judged(adapted(subject, mixed(library, mix), again), again)[1]
    trained = from_zero(subject, library, again, rates)
    alone = judged(adapted(subject, trained, again), again)[1]
    ours, theirs = (part.unflatten(1, (len(divided), -1)) for part in (sums, alone))
    wins = torch.tensor(
        [
            [
                members_win(
                    ours[g, :, t].flatten().tolist(),
                    theirs[g, :, t].flatten().tolist(),
                    max(ahead, 0.0),
                )
                for t in range(batch.rows.shape[1])
            ]
            for g, ahead in enumerate(left[1])
        ]
    )
    members, zero = mixed(library, weighed(known)), from_zero(subject, library, batch, rates)
    chosen = {
        site: torch.where(wins[..., None, None], members[site], zero[site])
        if is_private(site)
        else p
        for site, p in library.items()
    }
    counts = [part.sum((1, 3)).tolist() for part in (ours, theirs)]
    return Chosen(chosen, zero, wins, counts)
