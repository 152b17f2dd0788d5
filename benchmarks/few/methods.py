"""How a new task is learned: a library's adapter, and its rivals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from few.late import Late, Site, Tensors
from few.training import (
    LADDER,
    LORA,
    LORA_ALL,
    STEPS,
    Batch,
    Library,
    Subject,
    adapted,
    drawn,
    is_private,
    score,
    train,
)

Lanes = tuple[int, int]
Made = tuple[dict[Site, Tensor], dict[Site, Tensor]]
"""Frozen and trained tensors."""


class Method(NamedTuple):
    """A way to learn a new task.

    Attributes:
        library: the kind of library it starts from, if any.
        make: returns the tensors of lanes, from a library of (G, ...) and a seed.
        center: the middle of the rates, on the ladder.
    """

    library: str | None
    make: Callable[[Late, Library, Lanes, int], Made]
    center: float


def core(late: Late, library: Library, lanes: Lanes, seed: int) -> Made:
    """The library's A and B, and a core of zeros."""
    frozen = {site: p for site, p in library.items() if not is_private(site)}
    return frozen, _fresh({s: p for s, p in library.items() if is_private(s)}, lanes, seed)


def grown(late: Late, library: Library, lanes: Lanes, seed: int) -> Made:
    """The library's A and B, trained on with all new tasks together, and a core of zeros for each."""
    frozen, own = core(late, library, lanes, seed)
    return {}, {**{site: p.clone() for site, p in frozen.items()}, **own}


def joint_continued(late: Late, library: Library, lanes: Lanes, seed: int) -> Made:
    """The joint LoRA, all of it trained."""
    return {}, {s: p.expand(-1, lanes[1], *p.shape[2:]).clone() for s, p in library.items()}


def lora(
    rank: int, where: Callable[[Site], bool] = lambda site: True, spec: str = LORA
) -> Callable[..., Made]:
    """Return how to make a fresh LoRA on some modules."""

    def make(late: Late, library: Library, lanes: Lanes, seed: int) -> Made:
        start = late.start(spec, 0, r=rank)
        return {}, _fresh({s: p for s, p in start.items() if where(s)}, lanes, seed)

    return make


def _fresh(like: Tensors, lanes: Lanes, seed: int) -> dict[Site, Tensor]:
    return {site: drawn(site, p, lanes, 100 + seed) for site, p in like.items()}


METHODS = {
    "core": Method("core", core, 1e-2),
    "core4": Method("core4", core, 1e-2),
    "library_joint": Method("owned", core, 1e-2),
    "grown": Method("core", grown, 1e-2),
    "joint_continued": Method("joint", joint_continued, 3e-3),
    "lora": Method(None, lora(8), 1e-2),
    "lora1": Method(None, lora(1), 3e-2),
    "lora1_up": Method(None, lora(1, lambda s: s.kind == "up_proj"), 3e-2),
    "lora1_late": Method(None, lora(1, lambda s: s.block == 1 and s.kind[0] in "qkv"), 3e-2),
    "lora_all": Method(None, lora(8, spec=LORA_ALL), 3e-3),
    "lora1_all": Method(None, lora(1, spec=LORA_ALL), 1e-2),
}


def stacked(libraries: Sequence[Library], of: Sequence[int]) -> Library:
    """Return the libraries of lanes, (G, ...)."""
    first = libraries[0] if libraries else {}
    return {site: torch.cat([libraries[i][site] for i in of]) for site in first}


def learn(
    subject: Subject,
    name: str,
    libraries: Sequence[Library],
    batch: Batch,
    seeds: Sequence[int],
    places: Sequence[int],
) -> tuple[Tensor, int]:
    """Train new tasks.

    Args:
        subject: the family.
        name: of the method.
        libraries: by seed, where the method takes them.
        batch: the tasks' examples.
        seeds: of each G.
        places: the rates of each G, by their places on the ladder.

    Returns:
        How many test items each has correct, (G, T), and how many numbers each owns.
    """
    rates = torch.tensor([LADDER[place] for place in places])
    lanes, count = (len(seeds), batch.rows.shape[1]), batch.rows.shape[2] // batch.parts
    library = stacked(libraries, seeds)
    method = METHODS[name]
    frozen, trained = method.make(subject.late, library, lanes, max(seeds))
    # Below the first block that changes, states are computed once.
    late = all(site.block for site in trained)
    items = subject.late.beyond(frozen, subject.items, len(seeds)) if late else None
    logits = adapted(subject, {**frozen, **trained}, batch, items)
    train(logits, list(trained.values()), batch, rates, STEPS[count])
    own = [p[0, 0].numel() for p in trained.values() if p.shape[1] == lanes[1]]
    return score(logits, batch), sum(own)


@torch.no_grad()
def untrained(subject: Subject, library: Tensors, batch: Batch) -> Tensor:
    """Return how many are correct of the base, or of a joint LoRA as it is."""
    frozen = {site: p for site, p in library.items() if not is_private(site)}
    return score(adapted(subject, frozen, batch), batch)


@torch.no_grad()
def nearest(subject: Subject, batch: Batch, features: Tensor) -> Tensor:
    """Return how many test items have the label of the example whose features are most like theirs."""
    unit = F.normalize(features, dim=-1)
    like = unit[batch.tested] @ unit[batch.rows].mT
    labels = batch.labels.gather(2, like.argmax(-1))
    return (labels == batch.answers).sum(-1)


SHOWN = 2
"""One of so many test items is asked with examples in context."""


@torch.no_grad()
def in_context(subject: Subject, model: Any, batch: Batch) -> Tensor:
    """Return how many of the items asked are correct with the examples in the prompt, (G, T)."""
    encode, parts = subject.encode, batch.parts
    pause = "\n\n" if "\n" in subject.family.prompts[0] else "\n"
    right = torch.zeros(batch.rows.shape[:2], dtype=torch.long)
    for g, t in torch.cartesian_prod(*map(torch.arange, right.shape)).tolist():
        options = batch.options[g, t]
        tokens = options[batch.labels[g, t]] if len(options) else batch.labels[g, t]
        words = [subject.decode(part.tolist()) for part in tokens.split(parts)]
        first = batch.rows[g, t, ::parts].tolist()
        shown = [
            f"{subject.text(row)}{word}{pause}" for row, word in zip(first, words, strict=True)
        ]
        before = torch.tensor([encode("".join(shown))])
        asked, wanted = (
            of[g, t].view(-1, parts)[::SHOWN].flatten() for of in (batch.tested, batch.answers)
        )
        texts = [encode(subject.text(row)) for row in asked.tolist()]
        length = max(map(len, texts))
        ids = torch.tensor([text + [0] * (length - len(text)) for text in texts])
        past = model(before, use_cache=True, logits_to_keep=1).past_key_values
        past.batch_repeat_interleave(len(texts))
        states = model.model(ids, past_key_values=past, use_cache=True)[0]
        ends = torch.tensor([len(text) - 1 for text in texts])
        head = model.lm_head.weight[options] if len(options) else model.lm_head.weight
        found = (states[torch.arange(len(texts)), ends] @ head.T).argmax(-1) == wanted
        right[g, t] = found.view(-1, parts).all(-1).sum()
    return right
