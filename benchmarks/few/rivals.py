"""Rivals of a library's members: sums of separate LoRAs, LoraHub's search, and rules without a model."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from few.families import Family, Task
from few.late import Site
from few.members import mixed
from few.methods import lora
from few.training import (
    LADDER,
    LIBRARY_BATCH,
    LIBRARY_EACH,
    LIBRARY_STEPS,
    Batch,
    Library,
    Subject,
    adapted,
    folder,
    score,
    train,
)

RATES = (3, 4, 5)
"""Places on the ladder for LoRAs that are trained one by one."""
TRIES, STEP, MOST, PRICE = 40, 0.3, 1.5, 0.05
"""LoraHub's: evaluations, the size of a change, the largest weight, and the price of the mean weight."""


def alone(subject: Subject, tasks: int) -> tuple[Library, int]:
    """Return a LoRA r=8 of each library task, trained alone, (2, tasks, ...) each, and the rate's place."""
    kept = folder() / f"{subject.name}-alone-{tasks}.pt"
    if not kept.exists():
        found = {}
        for place in RATES:
            lanes = [[(1000 * seed + i, 0) for i in range(tasks)] for seed in (0, 1)]
            batch = subject.batch(lanes, LIBRARY_EACH, new=False)
            _, tensors = lora(8)(subject.late, {}, (2, tasks), 0)
            logits, rates = adapted(subject, tensors, batch), torch.tensor([LADDER[place]] * 2)
            own = list(tensors.values())
            train(logits, own, batch, rates, LIBRARY_STEPS, LIBRARY_BATCH)
            found[float(score(logits, batch).float().mean())] = (tensors, place)
        best, place = found[max(found)]
        torch.save(({tuple(site): p for site, p in best.items()}, place), kept)
    plain, place = torch.load(kept, weights_only=True)
    return {Site(*site): p for site, p in plain.items()}, place


def summed(library: Library, mix: Tensor) -> dict[Site, Tensor]:
    """Return exact sums of LoRAs (G, M, ...) by weights (G, T, M): PEFT's `add_weighted_adapter`, ``cat``."""
    made = {}
    for site, p in library.items():
        if site.role == "A":
            made[site] = p.flatten(1, 2)[:, None]
        else:
            made[site] = torch.einsum("gtm,gmro->gtmro", mix, p).flatten(2, 3)
    return made


@torch.no_grad()
def lorahub(subject: Subject, library: Library, batch: Batch) -> dict[Site, Tensor]:
    """Search the weights of members without gradients, by the examples' loss (arXiv 2307.13269).

    LoraHub takes 40 evaluations of Nevergrad, weights between -1.5 and 1.5 from zero on, and adds 0.05 times
    the mean of their sizes to the loss. This is a (1 + 1) evolution of the same.
    """
    lanes, members = batch.rows.shape[:2], next(p for p in _own(library)).shape[1]
    best, draw = torch.zeros(*lanes, members), torch.Generator().manual_seed(0)
    least, size = torch.full(lanes, torch.inf), torch.full((*lanes, 1), STEP)
    for number in range(TRIES):
        change = torch.randn(best.shape, generator=draw) * size * bool(number)
        tried = (best + change).clamp(-MOST, MOST)
        logits = adapted(subject, mixed(library, tried), batch)(batch.rows)
        losses = F.cross_entropy(logits.flatten(0, 2), batch.labels.flatten(), reduction="none")
        cost = losses.view(batch.rows.shape).mean(2) + PRICE * tried.abs().mean(2)
        better = cost < least
        least = torch.where(better, cost, least)
        best = torch.where(better[..., None], tried, best)
        # The rule of one fifth: larger changes after a success.
        size *= torch.where(better, 1.5, 1.5**-0.25)[..., None]
    return mixed(library, best)


def _own(library: Library) -> list[Tensor]:
    return [p for site, p in library.items() if site.role == "core"]


def majority(
    subject: Subject, lanes: list[list[tuple[int, int]]], count: int, tasks: int
) -> Tensor:
    """Return how many test items the commonest answer of the library's people has correct, (G, T)."""

    @cache
    def commonest(seed: int, item: int) -> str:
        people = [_task(subject.family, 1000 * seed + i) for i in range(tasks)]
        return Counter(_answer(task, item) for task in people).most_common(1)[0][0]

    right = torch.zeros(len(lanes), len(lanes[0]), dtype=torch.long)
    for g, lane in enumerate(lanes):
        for t, (number, seed) in enumerate(lane):
            task = _task(subject.family, number)
            _, tested = subject.family.draw(task, count, 10 * number + seed, new=True)
            right[g, t] = sum(_answer(task, item) == commonest(g, item) for item in tested)
    return right


@cache
def _task(family: Family, number: int) -> Task:
    return family.task(number)


def _answer(task: Task, item: int) -> str:
    if task.texts:
        return "".join(task.texts[item])
    return task.options[task.labels[item]]


def by_numbers(subject: Subject, batch: Batch) -> Tensor:
    """Return how many test items have the label of the example with the nearest numbers, (G, T)."""
    found = [list(map(float, re.findall(r"\d+", text))) for text in subject.family.prompts]
    table = torch.tensor(found)
    table = (table - table.mean(0)) / table.std(0)
    near = torch.cdist(table[batch.tested], table[batch.rows]).argmin(-1)
    return (batch.labels.gather(2, near) == batch.answers).sum(-1)
