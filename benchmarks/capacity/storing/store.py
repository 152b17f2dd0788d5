"""Train several adapters of one topology in one pass, and count the pairs that each has stored.

All adapters share the frozen base; only their tensors, pairs and learning rates differ. `vmap` runs
bishare's rewritten forward over a stack of them, and AdamW has a learning rate for each.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.func import functional_call, vmap
from torch.nn import functional as F

from bishare_dsl import compile_spec, plan_spec
from storing.bases import TURN, VALUES, Base, trunk
from storing.pairs import Pairs, pairs

LARGEST_NORM = 1.0
EPSILON = 1e-8

Spec = tuple[str, Mapping[str, Any]]
"""A name or a text, and its params."""


@dataclass(frozen=True)
class Load:
    """What is to be stored, and for how long it is shown."""

    base: Base
    task: str
    pairs: int
    steps: int

    def stack(self, spec: Spec, runs: Sequence[tuple[float, int]]) -> Stack:
        """Return adapters that are not trained yet, one for each rate and seed."""
        return (Following if self.base.follows else Stack)(self, spec, runs)


@dataclass(frozen=True)
class Recipe:
    """The training settings of an adapter except the learning rate.

    Attributes:
        warm_up: the part of the steps in which the rate rises to its peak.
        betas: of AdamW.
        factors: of the rate, by share.
        by_share: whether each share's gradient is clipped by itself.
        largest_update: of AdamW's step before the rate, the root mean square over all numbers (StableAdamW).
    """

    warm_up: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    factors: Mapping[str, float] = field(default_factory=dict)
    by_share: bool = False
    largest_update: float = math.inf


Watch = Callable[[int, torch.Tensor, torch.Tensor], None]
"""Is given the number of a step, its rows, and by how much it will change the numbers."""


def store(
    load: Load, spec: Spec, runs: Sequence[tuple[float, int]], recipe: Recipe = Recipe()
) -> list[dict[str, Any]]:
    """Train an adapter for each rate and seed; return what each has stored.

    Bits are what the code length of the values falls short of eight bits each: their sum over pairs of
    ``8 + log2 p(value | key)``.
    """
    started = time.process_time()
    torch.set_num_threads(1)
    stack = load.stack(spec, runs)
    losses = stack.train(load.steps, torch.tensor([rate for rate, _ in runs]), recipe)
    nats, right = stack.evaluate()
    seconds = (time.process_time() - started) / len(runs)
    rows = []
    for i, _ in enumerate(runs):
        bits = load.pairs * math.log2(VALUES) - float(nats[i]) / math.log(2)
        rows.append(
            {
                "parameters": stack.parameters,
                "bytes": stack.bytes,
                "bits": round(bits, 1) if math.isfinite(bits) else None,
                "right": round(float(right[i]), 5),
                "loss": [round(v, 3) if math.isfinite(v) else None for v in losses[i]],
                "cpu_s": round(seconds, 2),
            }
        )
    return rows


def trained(load: Load, spec: Spec, rate: float, seed: int) -> Any:
    """Train one adapter; return its model."""
    stack = load.stack(spec, [(rate, seed)])
    stack.train(load.steps, torch.tensor([rate]))
    own = _tensors(stack.adapted)
    for name, tensor in stack.pieces().items():
        own[name].data.copy_(tensor[0])
    return stack.adapted


class Adapters:
    """Adapters of one topology on one base, their tensors stacked: each (adapters, …).

    Attributes:
        values: what is right of each adapter's rows, (adapters, rows), by its number among the answers.
        batches: of an epoch.
    """

    values: torch.Tensor

    def __init__(
        self, base: Callable[[], Any], spec: Spec, seeds: Sequence[int], batches: int
    ) -> None:
        text, params = spec
        self.seeds, self.batches = seeds, batches
        models = {
            seed: compile_spec(text, base(), params=params, seed=seed)
            for seed in dict.fromkeys(seeds)
        }
        first = models[seeds[0]]
        self.parameters = plan_spec(text, base(), params).trainable
        self.bytes = _size(first)
        self.adapted = first.train()
        own = [_tensors(models[seed]) for seed in seeds]
        self.fixed, trained = {}, {}
        for name, tensor in own[0].items():
            stacked = torch.stack([tensors[name].detach() for tensors in own])
            (trained if tensor.requires_grad else self.fixed)[name] = stacked
        self.names = list(trained)
        self.shapes = [tensor.shape for tensor in trained.values()]
        self.flat = torch.cat([t.flatten(1) for t in trained.values()], 1).requires_grad_()

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """Return (adapters, batch, values) of some rows, whose numbers are (adapters, batch)."""
        raise NotImplementedError

    def losses(self, rows: torch.Tensor, reduction: str) -> torch.Tensor:
        """Return each adapter's losses on some of its rows, whose numbers are (adapters, batch)."""
        logits = self.logits(rows)
        values = self.values.gather(1, rows)
        found = F.cross_entropy(logits.transpose(1, 2), values, reduction="none")
        return found.mean(1) if reduction == "mean" else found.sum(1)

    def pieces(self) -> dict[str, torch.Tensor]:
        """Return what is trained, by name."""
        pieces = self.flat.split([shape[1:].numel() for shape in self.shapes], 1)
        return {
            name: piece.view(shape)
            for name, piece, shape in zip(self.names, pieces, self.shapes, strict=True)
        }

    def groups(self, of: Callable[[str], str]) -> dict[str, torch.Tensor]:
        """Return by group which numbers are its own, as 1 and 0; `of` names the group of a tensor."""
        found: dict[str, torch.Tensor] = {}
        for group in dict.fromkeys(map(of, self.names)):
            parts = [
                torch.full((shape[1:].numel(),), float(of(name) == group))
                for name, shape in zip(self.names, self.shapes, strict=True)
            ]
            found[group] = torch.cat(parts)
        return found

    def train(
        self,
        steps: int,
        rates: torch.Tensor,
        recipe: Recipe = Recipe(),
        watch: Watch = lambda *_: None,
    ) -> list[list[float]]:
        """Train all; return twelve losses of each, means over as many stretches of the steps."""
        first = torch.zeros_like(self.flat)
        second = torch.zeros_like(self.flat)
        draws = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        warm = max(1, round(recipe.warm_up * steps))
        count = self.values.shape[1]
        size = count // self.batches
        shares = self.groups(share_of)
        factors = sum(mask * recipe.factors.get(name, 1.0) for name, mask in shares.items())
        clipped = list(shares.values()) if recipe.by_share else [torch.ones(self.flat.shape[1])]
        slow, fast = recipe.betas[1], recipe.betas[0]
        told = []
        for step in range(steps):
            if step % self.batches == 0:
                order = torch.stack([torch.randperm(count, generator=draw) for draw in draws])
            at = step % self.batches * size
            rows = order[:, at : at + size]
            loss = self.losses(rows, "mean")
            (gradient,) = torch.autograd.grad(loss.sum(), self.flat)
            told.append(loss.detach())
            gradient = sum(_clipped(gradient * mask, len(clipped)) for mask in clipped)
            first.lerp_(gradient, 1 - fast)
            second.lerp_(gradient * gradient, 1 - slow)
            done = (step - warm) / (steps - warm)
            part = (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * done))
            root = (second / (1 - slow ** (step + 1))).sqrt()
            update = first / (1 - fast ** (step + 1)) / (root + EPSILON)
            size_of_update = update.square().mean(1, keepdim=True).sqrt()
            update /= (size_of_update / recipe.largest_update).clamp(min=1)
            with torch.no_grad():
                change = -part * rates[:, None] * factors * update
                watch(step, rows, change)
                self.flat += change
        stretches = torch.stack(told, 1).tensor_split(min(12, steps), 1)
        return torch.stack([part.mean(1) for part in stretches], 1).tolist()


class Stack(Adapters):
    """Adapters that store pairs, each of them its own."""

    def __init__(self, load: Load, spec: Spec, runs: Sequence[tuple[float, int]]) -> None:
        super().__init__(load.base.load, spec, [seed for _, seed in runs], load.base.batches)
        found: list[Pairs] = [pairs(load.base, load.task, load.pairs, seed) for _, seed in runs]
        self.length = found[0].keys.shape[1]
        self.keys = torch.stack([self._read(one.keys) for one in found])
        self.values = torch.stack([one.values for one in found])
        head = self.adapted.lm_head.weight.detach().float()
        self.heads = torch.stack([head[one.tokens] for one in found])
        # Of all tokens only the values' logits are wanted.
        self.adapted.lm_head = torch.nn.Identity()

    def _read(self, keys: torch.Tensor) -> torch.Tensor:
        """Return what the model reads of each key: its tokens."""
        return keys

    def _given(self, keys: torch.Tensor) -> dict[str, Any]:
        """Return the model's inputs."""
        hidden = torch.full((self.length, self.length), -1e9).triu(1)
        return {
            "input_ids": keys,
            "attention_mask": hidden.expand(len(keys), 1, -1, -1),
            "position_ids": torch.arange(self.length).expand(len(keys), -1),
        }

    def _ends(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return the outputs at the last token of each key."""
        return outputs[:, -1]

    def _logits(
        self, tensors: Mapping[str, torch.Tensor], keys: torch.Tensor, head: torch.Tensor
    ) -> torch.Tensor:
        """Return one adapter's logits (keys, VALUES) of the values."""
        given = {**self._given(keys), "use_cache": False}
        found = functional_call(self.adapted, dict(tensors), (), given).logits
        return self._ends(found).float() @ head.t()

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """Return (adapters, batch, VALUES)."""
        keys = self.keys.gather(1, rows[..., None].expand(-1, -1, self.keys.shape[-1]))
        return vmap(self._logits)({**self.pieces(), **self.fixed}, keys, self.heads)

    @torch.no_grad()
    def evaluate(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each adapter's loss, summed over its pairs, in nats; and what part it has right."""
        nats, right = torch.zeros(len(self.seeds)), torch.zeros(len(self.seeds))
        every = torch.arange(self.keys.shape[1])
        for part in every.split(512):
            rows = part.expand(len(self.seeds), -1)
            logits = self.logits(rows)
            values = self.values.gather(1, rows)
            nats += F.cross_entropy(logits.transpose(1, 2), values, reduction="none").sum(1)
            right += (logits.argmax(2) == values).sum(1)
        return nats, right / len(every)


class Following(Stack):
    """The same in the last blocks of a trained model: keys follow the tokens that begin a turn.

    All keys of a batch are one text, in which none sees another, so that these tokens are read once.
    """

    @torch.no_grad()
    def _read(self, keys: torch.Tensor) -> torch.Tensor:
        """Return what the frozen blocks give for the tokens of each key, (keys, length * width)."""
        ids = torch.cat([torch.tensor(TURN).expand(len(keys), -1), keys], 1)
        below = trunk()
        hidden = torch.cat([below(input_ids=some, use_cache=False)[0] for some in ids.split(64)])
        self.turn = hidden[0, : len(TURN)]
        return hidden[:, len(TURN) :].flatten(1)

    def _given(self, keys: torch.Tensor) -> dict[str, Any]:
        start, count = len(TURN), len(keys)
        own = torch.ones(self.length, self.length).tril()
        seen = torch.block_diag(torch.ones(start, start).tril(), *[own] * count)
        seen[start:, :start] = 1
        places = torch.arange(start, start + self.length).repeat(count)
        return {
            "inputs_embeds": torch.cat([self.turn, keys.view(count * self.length, -1)])[None],
            "attention_mask": torch.where(seen > 0, 0.0, -1e9)[None, None].to(keys.dtype),
            "position_ids": torch.cat([torch.arange(start), places])[None],
        }

    def _ends(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs[0, len(TURN) + self.length - 1 :: self.length]


def _clipped(gradient: torch.Tensor, parts: int) -> torch.Tensor:
    """Return each adapter's gradient at its largest norm; that of one of some parts at a part of it."""
    most = LARGEST_NORM / math.sqrt(parts)
    norm = gradient.norm(dim=1, keepdim=True)
    return gradient * (most / (norm + 1e-6)).clamp(max=1)


def share_of(name: str) -> str:
    """Return the share to which a tensor belongs, by its name in the model."""
    return name.rsplit(".", 1)[-1].split("__")[0]


def _tensors(model: Any) -> dict[str, torch.Tensor]:
    """Return an adapter's tensors by their names in the model."""
    return {name: tensor for name, tensor in model.named_parameters() if "bishare_tensors" in name}


def _size(model: Any) -> int:
    with tempfile.TemporaryDirectory() as folder:
        model.bishare.save_pretrained(folder)
        return sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))
