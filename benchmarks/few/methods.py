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
        label: for tables.
        library: the kind of library it starts from, if any.
        make: returns the tensors of lanes, from a library of (G, ...) and a seed.
        center: the middle of the rates, on the ladder.
        longer: how many times as many steps it takes.
    """

    label: str
    library: str | None
    make: Callable[[Late, Library, Lanes, int], Made]
    center: float
    longer: int = 1


def core(late: Late, library: Library, lanes: Lanes, seed: int) -> Made:
    """The library's A and B, and a core of zeros."""
    frozen = {site: p for site, p in library.items() if not is_private(site)}
    return frozen, _fresh({s: p for s, p in library.items() if is_private(s)}, lanes, seed)


def core_at_mean(late: Late, library: Library, lanes: Lanes, seed: int) -> Made:
    """The library's A and B, and a core that starts at the mean of the library's."""
    frozen = {site: p for site, p in library.items() if not is_private(site)}
    cores = {s: p.mean(1, keepdim=True) for s, p in library.items() if is_private(s)}
    return frozen, _spread(cores, lanes)


def grown(late: Late, library: Library, lanes: Lanes, seed: int) -> Made:
    """The library's A and B, trained on with all new tasks together, and a core of zeros for each."""
    frozen, own = core(late, library, lanes, seed)
    return {}, {**{site: p.clone() for site, p in frozen.items()}, **own}


def lora_at_mean(late: Late, library: Library, lanes: Lanes, seed: int) -> Made:
    """A LoRA that starts at the mean update of the library."""
    trained = {}
    for site, p in library.items():
        if site.role == "B":
            trained[site] = library[site._replace(role="core")].mean(1, keepdim=True) @ p
        elif site.role == "A":
            trained[site] = p
    return {}, _spread(trained, lanes)


def tiny(late: Late, library: Library, lanes: Lanes, seed: int) -> Made:
    """The joint LoRA, and a LoRA of rank 1 on the last block's values."""
    own = {
        Site("own", 1, "v_proj", role): library["joint", 1, "v_proj", role][:, :, :1]  # type: ignore[index]
        for role in "AB"
    }
    return dict(library), _fresh(own, lanes, seed)


def joint_continued(late: Late, library: Library, lanes: Lanes, seed: int) -> Made:
    """The joint LoRA, all of it trained."""
    return {}, _spread(library, lanes)


def lora(
    rank: int, where: Callable[[Site], bool] = lambda site: True, spec: str = LORA
) -> Callable[..., Made]:
    """Return how to make a fresh LoRA on some modules."""

    def make(late: Late, library: Library, lanes: Lanes, seed: int) -> Made:
        start = late.start(spec, 0, r=rank)
        return {}, _fresh({s: p for s, p in start.items() if where(s)}, lanes, seed)

    return make


def lora_xs(late: Late, library: Library, lanes: Lanes, seed: int) -> Made:
    """Cores between the largest singular directions of each weight."""
    start = late.start("lora_xs", 0, r=8)
    own = {site: p for site, p in start.items() if site.role == "core"}
    return {s: p for s, p in start.items() if s not in own}, _fresh(own, lanes, seed)


def _fresh(like: Tensors, lanes: Lanes, seed: int) -> dict[Site, Tensor]:
    return {site: drawn(site, p, lanes, 100 + seed) for site, p in like.items()}


def _spread(tensors: Tensors, lanes: Lanes) -> dict[Site, Tensor]:
    return {s: p.expand(-1, lanes[1], *p.shape[2:]).clone() for s, p in tensors.items()}


METHODS = {
    "core": Method("library_core, r=8", "core", core, 1e-2),
    "lora": Method("fresh LoRA, r=8", None, lora(8), 1e-2),
    "joint_tiny": Method("joint LoRA frozen + LoRA r=1 on v", "joint", tiny, 3e-3),
    "library_joint": Method("library_joint", "owned", core, 1e-2),
    "joint_continued": Method("joint LoRA continued", "joint", joint_continued, 3e-3),
    "lora_at_mean": Method("LoRA started at the library's mean", "core", lora_at_mean, 3e-3),
    "lora1": Method("fresh LoRA, r=1, all modules", None, lora(1), 3e-2),
    "lora1_up": Method("fresh LoRA, r=1, up", None, lora(1, lambda s: s.kind == "up_proj"), 3e-2),
    "lora1_late": Method(
        "fresh LoRA, r=1, q, k, v of the last block",
        None,
        lora(1, lambda s: s.block == 1 and s.kind[0] in "qkv"),
        3e-2,
    ),
    "lora_xs": Method("fresh LoRA-XS, r=8", None, lora_xs, 3e-2),
    "shuffled": Method("library on shuffled labels", "shuffled", core, 1e-2),
    "core_at_mean": Method("library_core, started at the mean", "core", core_at_mean, 1e-2),
    "core4": Method("library_core, r=4", "core4", core, 1e-2),
    "core2": Method("library_core, r=2", "core2", core, 3e-2),
    "core1": Method("library_core, r=1", "core1", core, 3e-2),
    "grown": Method("library_core, grown with the new tasks", "core", grown, 1e-2),
    "lora_all": Method("fresh LoRA, r=8, all blocks", None, lora(8, spec=LORA_ALL), 3e-3),
    "lora1_all": Method("fresh LoRA, r=1, all blocks", None, lora(1, spec=LORA_ALL), 1e-2),
    "lora_longer": Method("fresh LoRA, r=8, twice the steps", None, lora(8), 1e-2, longer=2),
}
HEADS = {"head": None, "joint_head": "joint"}
"""Linear heads on the final states, of the base or of a joint LoRA."""
LORA1 = ("lora1", "lora1_up", "lora1_late")
"""Of these the best placed is judged."""


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
    steps, library = STEPS[count], stacked(libraries, seeds)
    if name in HEADS:
        states = _states(subject, library, batch)
        base = states @ subject.late.head[batch.options].mT
        weights = torch.zeros(*lanes, 3, states.shape[-1])
        bias = torch.zeros(*lanes, 1, 3)

        both = torch.cat([batch.rows, batch.tested], 2)

        def logits(rows: Tensor) -> Tensor:
            # The place of each item among those whose states are known.
            place = (both[..., None, :] == rows[..., None]).int().argmax(-1, keepdim=True)
            known = states.gather(2, place.expand(-1, -1, -1, states.shape[-1]))
            return base.gather(2, place.expand(-1, -1, -1, 3)) + known @ weights.mT + bias

        train(logits, [weights, bias], batch, rates, steps)
        return score(logits, batch), weights[0, 0].numel() + 3
    method = METHODS[name]
    frozen, trained = method.make(subject.late, library, lanes, max(seeds))
    # Below the first block that changes, states are computed once.
    late = all(site.block for site in trained)
    items = subject.late.beyond(frozen, subject.items, len(seeds)) if late else None
    logits = adapted(subject, {**frozen, **trained}, batch, items)
    train(logits, list(trained.values()), batch, rates, steps * method.longer)
    own = [p[0, 0].numel() for p in trained.values() if p.shape[1] == lanes[1]]
    return score(logits, batch), sum(own)


@torch.no_grad()
def _states(subject: Subject, library: Tensors, batch: Batch) -> Tensor:
    """Return the final states of examples and test items, (G, T, n + m, width)."""
    rows = torch.cat([batch.rows, batch.tested], 2)
    if not library:
        return subject.final[rows]
    late, items = subject.late, subject.items
    return torch.cat([late.states(library, items, some) for some in rows.split(12, 2)], 2)


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
