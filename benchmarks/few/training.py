"""Training of many adapters at once, and libraries of tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import torch
from torch import Tensor
from torch.nn import functional as F

from bishare_dsl.resources import cache_folder
from few.families import FAMILIES, GREETINGS, LABELS, Family, Task
from few.late import LATE, Items, Late, Site, Tensors, items_of
from few.typed import TYPED

LONGEST = {
    "thresholds": 4,
    "renames": 6,
    "ratings": 4,
    "styles": 7,
    "desks": 14,
    "patients": 12,
    "replies": 1,
    "orders": 6,
    "layouts": 6,
    "words": 6,
    "countries": 8,
    "raters": 4,
}
"""Tokens of a family's longest prompt; in `replies`, of a name."""
WARM_UP = 4
"""Steps; then the rate falls linearly to zero."""
BATCH = 8
"""Examples of a task in a step, at most."""
STEPS = {1: 24, 2: 24, 3: 24, 4: 24, 6: 24, 8: 24, 12: 32, 16: 32, 32: 48, 48: 64, 64: 64}
"""By examples."""
LIBRARY_STEPS, LIBRARY_BATCH, LIBRARY_EACH = 120, 4, 24
"""Steps, examples of each task in a step, and its examples."""


class Batch(NamedTuple):
    """Examples and test items of tasks, in lanes (G, T).

    Attributes:
        rows: the examples' items, (G, T, n).
        labels: (G, T, n).
        tested: the test items, (G, T, m).
        answers: their labels, (G, T, m).
        options: token ids of the labels, (G, T, 3); (G, T, 0) if any token may follow, and then labels are
            token ids.
        parts: how many rows stand in a line for one example, a row for each token of its completion.
    """

    rows: Tensor
    labels: Tensor
    tested: Tensor
    answers: Tensor
    options: Tensor
    parts: int = 1


class Subject:
    """A family with its cached states.

    Args:
        name: of the family.
        model: a function that returns the whole model.
        tokenizer: the model's.
        late: the last blocks.
    """

    def __init__(self, name: str, model: Callable[[], Any], tokenizer: Any, late: Late) -> None:
        self.name, self.late = name, late

        def encode(text: str) -> list[int]:
            return list(tokenizer.encode(text, add_special_tokens=False))

        self.encode, self.decode = encode, tokenizer.decode
        self.family: Family = {**FAMILIES, **TYPED}[name](
            cache_folder() / "wheels", lambda text: len(encode(text)) <= LONGEST[name]
        )
        # A prompt alone, and with each first word that may follow it.
        starts = ("", *GREETINGS) if name == "replies" else ("",)
        self.starts = {start: i for i, start in enumerate(starts)}
        all_blocks = "" if late.count == LATE else f"-{late.count}"
        kept = folder() / f"{name}{all_blocks}.pt"
        if not kept.exists():
            prompts = [encode(prompt + s) for prompt in self.family.prompts for s in starts]
            items = items_of(model(), prompts, late.count)
            every = torch.arange(len(prompts))[None, None]
            with torch.no_grad():
                final = [late.states({}, items, some)[0, 0] for some in every.split(100, 2)]
            torch.save((items.states, items.real, torch.cat(final)), kept)
        states, real, self.final = torch.load(kept, weights_only=True)
        self.items = Items(states, real)

    def text(self, row: int) -> str:
        """Return the text of a row: a prompt, and the first word after it in some."""
        item, start = divmod(row, len(self.starts))
        return self.family.prompts[item] + [*self.starts][start]

    def batch(
        self,
        lanes: Sequence[Sequence[tuple[int, int]]],
        count: int,
        *,
        new: bool,
    ) -> Batch:
        """Return the examples of tasks.

        Args:
            lanes: the number and the seed of each lane's task.
            count: of examples each.
            new: from the items of new tasks, rather than those of a library.
        """
        parts: list[list[list[Any]]] = []
        for lane in lanes:
            row: list[list[Any]] = []
            for number, seed in lane:
                task: Task = self.family.task(number)
                examples, tested = self.family.draw(task, count, 10 * number + seed, new=new)
                if task.texts:
                    pairs = [self._replies(task, some) for some in (examples, tested)]
                    row.append([*pairs[0], *pairs[1], []])
                    continue
                labels = [task.labels[i] for i in examples]
                options = [self.encode(option) for option in task.options]
                assert all(len(option) == 1 for option in options)
                answers = [task.labels[i] for i in tested]
                row.append([examples, labels, tested, answers, [o[0] for o in options]])
            parts.append(row)
        made = (torch.tensor([[t[i] for t in row] for row in parts]) for i in range(5))
        return Batch(*made, parts=2 if len(self.starts) > 1 else 1)

    def _replies(self, task: Task, items: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return two rows for each item, and the token that follows each."""
        rows, tokens, width = list[int](), list[int](), len(self.starts)
        for item in items:
            first, name = task.texts[item]
            rows += [item * width, item * width + self.starts[first]]
            tokens += [self.encode(word)[0] for word in (first, name)]
        return rows, tokens


def folder() -> Path:
    """Return where states and libraries are kept."""
    found = cache_folder() / "few"
    found.mkdir(parents=True, exist_ok=True)
    return found


class Adam:
    """Adam over lanes, each with a rate and a norm of its own.

    Args:
        tensors: (G, T or 1, ...) each.
        rates: of each G.
        steps: of the whole run.
    """

    def __init__(self, tensors: Sequence[Tensor], rates: Tensor, steps: int) -> None:
        self.tensors = [tensor.requires_grad_() for tensor in tensors]
        self.state = [(torch.zeros_like(p), torch.zeros_like(p)) for p in tensors]
        self.rates, self.steps, self.done = rates, steps, 0

    @torch.no_grad()
    def step(self) -> None:
        """Follow the gradients, and forget them."""
        self.done += 1
        factor = min(1.0, self.done / WARM_UP) * (1 - (self.done - 1) / self.steps)
        # Of private tensors the norm is each task's, of shared ones the library's.
        norms: dict[int, Tensor] = {}
        for p in self.tensors:
            assert p.grad is not None
            square = p.grad.square().flatten(2).sum(2)
            norms[p.shape[1]] = norms.get(p.shape[1], torch.zeros(())) + square
        for p, (mean, square) in zip(self.tensors, self.state, strict=True):
            shape = (*norms[p.shape[1]].shape, *[1] * (p.dim() - 2))
            grad = p.grad / norms[p.shape[1]].sqrt().clamp(min=1.0).view(shape)
            mean.lerp_(grad, 0.1)
            square.lerp_(grad.square(), 0.001)
            denominator = (square / (1 - 0.999**self.done)).sqrt_().add_(1e-8)
            rate = (self.rates * factor / (1 - 0.9**self.done)).view(-1, *[1] * (p.dim() - 1))
            p.sub_(rate * mean / denominator)
            p.grad = None


def train(
    logits: Callable[[Tensor], Tensor],
    trained: Sequence[Tensor],
    batch: Batch,
    rates: Tensor,
    steps: int,
    each: int = BATCH,
    seed: int = 0,
) -> None:
    """Train tensors in place on the loss among the options.

    Args:
        logits: returns (G, T, B, options) of items (G, T, B).
        trained: (G, T or 1, ...) each.
        batch: the examples.
        rates: of each G.
        steps: of the run.
        each: examples of a task in a step, at most.
        seed: of the examples' order.
    """
    optimizer, draw = Adam(trained, rates, steps), torch.Generator().manual_seed(seed)
    lanes, count, within = batch.rows.shape[:2], batch.rows.shape[2] // batch.parts, batch.parts
    each = min(each, count)
    order = torch.zeros(0)
    for step in range(steps):
        first = step * each % count
        if first == 0:
            # As the numbers of tasks and examples, the order does not depend on the rate.
            order = torch.rand(1, lanes[1], count, generator=draw).argsort(-1)
            order = order.expand(*lanes, count)
        chosen = order[..., first : first + each, None] * within + torch.arange(within)
        chosen = chosen.flatten(2)
        found = logits(batch.rows.gather(2, chosen))
        labels = batch.labels.gather(2, chosen)
        loss = F.cross_entropy(found.flatten(0, 2), labels.flatten(), reduction="sum")
        (loss / each).backward()
        optimizer.step()
    for tensor in trained:
        tensor.requires_grad_(False)


@torch.no_grad()
def score(logits: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
    """Return how many test items each lane has correct, (G, T)."""
    return judged(logits, batch)[1].sum(-1)


@torch.no_grad()
def judged(logits: Callable[[Tensor], Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the loss of each test item, summed over its tokens, and whether it is correct, (G, T, m)."""
    losses, right = [], []
    parts = batch.tested.split(LABELS * 4, 2), batch.answers.split(LABELS * 4, 2)
    for rows, answers in zip(*parts, strict=True):
        found = logits(rows)
        loss = F.cross_entropy(found.flatten(0, 2), answers.flatten(), reduction="none")
        losses.append(loss.view(*answers.shape[:2], -1, batch.parts).sum(-1))
        right.append((found.argmax(-1) == answers).unflatten(2, (-1, batch.parts)).all(-1))
    return torch.cat(losses, 2), torch.cat(right, 2)


def adapted(
    subject: Subject, tensors: Tensors, batch: Batch, items: Items | None = None
) -> Callable[[Tensor], Tensor]:
    """Return the function from items to logits of lanes of adapters."""
    late, items = subject.late, items or subject.items

    def logits(rows: Tensor) -> Tensor:
        return late.logits(late.states(tensors, items, rows), batch.options)

    return logits


def drawn(site: Site, like: Tensor, lanes: tuple[int, int], seed: int) -> Tensor:
    """Return a private tensor's initial values: A of a LoRA is random, all else zero."""
    shape = (*lanes, *like.shape[2:])
    if site.role != "A":
        return torch.zeros(shape)
    bound = like.shape[-1] ** -0.5
    draw = torch.Generator().manual_seed(crc32(f"{seed} {site}".encode()))
    return torch.empty(shape).uniform_(-bound, bound, generator=draw)


LORA = """spec lora_late
param r = 8
target layer in -2.. and (attention_inputs or mlp_ups or mlp_downs)
scale 2
share joint  per module  rank r
"""


LORA_ALL = LORA.replace("lora_late", "lora_all").replace("layer in -2.. and ", "")
"""The same on all blocks."""


class Kind(NamedTuple):
    """A way to train a library.

    Attributes:
        spec: its name or text.
        params: of the spec.
        rate_of: the kind whose rate it takes; its own if it is that one.
    """

    spec: str
    params: dict[str, Any]
    rate_of: str


KINDS = {
    "core": Kind("library_core", {"r": 8}, "core"),
    "core4": Kind("library_core", {"r": 4}, "core"),
    "joint": Kind(LORA, {"r": 8}, "joint"),
    "owned": Kind("library_joint", {}, "joint"),
}
LADDER = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
"""Rates to choose from."""


def is_private(site: Site) -> bool:
    """Return whether each task of a library has a tensor of its own."""
    return site.role == "core" or site.share == "own"


Library = dict[Site, Tensor]


def libraries(
    subject: Subject, kind: str, tasks: int
) -> tuple[list[Library], int, dict[int, float]]:
    """Return the libraries of seeds 0 and 1 of a number of tasks, and the rate's place, trained once.

    The rate is one of two, chosen by the library's tasks' own test items, on seed 0.
    """
    kept = folder() / f"{subject.name}-{kind}-{tasks}.pt"
    if not kept.exists():
        how = KINDS[kind]
        if how.rate_of != kind:
            place, found = libraries(subject, how.rate_of, 16)[1], {}
            made = _trained(subject, how, tasks, [0, 1], [place, place])[0]
        elif tasks != 16:
            place, found = libraries(subject, kind, 16)[1], {}
            made = _trained(subject, how, tasks, [0, 1], [place, place])[0]
        else:
            places = [LADDER.index(3e-3), LADDER.index(1e-2)]
            some, right = _trained(subject, how, tasks, [0, 0], places)
            best = right.index(max(right))
            place, found = places[best], dict(zip(places, right, strict=True))
            made = [some[best], *_trained(subject, how, tasks, [1], [place])[0]]
        plain = [{tuple(site): p for site, p in library.items()} for library in made]
        torch.save((plain, place, found), kept)
    plain, place, found = torch.load(kept, weights_only=True)
    return [{Site(*site): p for site, p in one.items()} for one in plain], place, found


def _trained(
    subject: Subject, kind: Kind, tasks: int, seeds: Sequence[int], places: Sequence[int]
) -> tuple[list[Library], list[float]]:
    """Train libraries, and return them and what part of their tasks' test items is correct."""
    lanes = [[(1000 * seed + i, 0) for i in range(tasks)] for seed in seeds]
    batch = subject.batch(lanes, LIBRARY_EACH, new=False)
    starts = [subject.late.start(kind.spec, seed, **kind.params) for seed in seeds]
    tensors = {
        site: drawn(site, starts[0][site], (len(seeds), tasks), 0)
        if is_private(site)
        else torch.cat([start[site] for start in starts])
        for site in starts[0]
    }
    logits = adapted(subject, tensors, batch)
    rates = torch.tensor([LADDER[place] for place in places])
    train(logits, list(tensors.values()), batch, rates, LIBRARY_STEPS, LIBRARY_BATCH)
    right = score(logits, batch).float().mean(1) * batch.parts / batch.tested.shape[2]
    made = [{site: p[i : i + 1].clone() for site, p in tensors.items()} for i in range(len(seeds))]
    return made, right.tolist()
