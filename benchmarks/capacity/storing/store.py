"""Train several adapters of one topology in one pass, and count what each has stored.

The base is frozen and common, so that adapters differ in their tensors, pairs and rates alone: `vmap` runs
bishare's own rewritten forward over a stack of them, and AdamW has a rate for each.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.func import functional_call, vmap
from torch.nn import functional as F

from bishare_dsl import compile_spec, plan_spec
from storing.bases import VALUES, Base
from storing.pairs import Pairs, pairs

BATCHES = 6
"""Of an epoch."""
STEPS = 120
WARM_UP = 0.05
LARGEST_NORM = 1.0
BETAS, EPSILON = (0.9, 0.999), 1e-8

Spec = tuple[str, Mapping[str, Any]]
"""A name or a text, and its params."""


@dataclass(frozen=True)
class Load:
    """What is to be stored, and for how long it is shown."""

    base: Base
    task: str
    pairs: int
    steps: int = STEPS


def store(load: Load, spec: Spec, runs: Sequence[tuple[float, int]]) -> list[dict[str, Any]]:
    """Train an adapter for each rate and seed; return what each has stored.

    Bits are what the code length of the values falls short of eight bits each: their sum over pairs of
    ``8 + log2 p(value | key)``.
    """
    started = time.process_time()
    torch.set_num_threads(1)
    stack = _Stack(load, spec, runs)
    losses = stack.train(load.steps, torch.tensor([rate for rate, _ in runs]))
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
    stack = _Stack(load, spec, [(rate, seed)])
    stack.train(load.steps, torch.tensor([rate]))
    own = _tensors(stack.adapted)
    for name, tensor in stack.pieces().items():
        own[name].data.copy_(tensor[0])
    return stack.adapted


class _Stack:
    """Adapters of one topology on one base, their tensors stacked: each (adapters, …)."""

    def __init__(self, load: Load, spec: Spec, runs: Sequence[tuple[float, int]]) -> None:
        text, params = spec
        self.seeds = [seed for _, seed in runs]
        models = {
            seed: compile_spec(text, load.base.load(), params=params, seed=seed)
            for seed in dict.fromkeys(self.seeds)
        }
        first = models[self.seeds[0]]
        self.parameters = plan_spec(text, load.base.load(), params).trainable
        self.bytes = _size(first)
        self.adapted = first.train()
        own = [_tensors(models[seed]) for seed in self.seeds]
        self.fixed, trained = {}, {}
        for name, tensor in own[0].items():
            stacked = torch.stack([tensors[name].detach() for tensors in own])
            (trained if tensor.requires_grad else self.fixed)[name] = stacked
        self.names = list(trained)
        self.shapes = [tensor.shape for tensor in trained.values()]
        self.flat = torch.cat([t.flatten(1) for t in trained.values()], 1).requires_grad_()
        found: list[Pairs] = [pairs(load.base, load.task, load.pairs, seed) for _, seed in runs]
        self.keys = torch.stack([one.keys for one in found])
        self.values = torch.stack([one.values for one in found])
        head = first.lm_head.weight.detach()
        self.heads = torch.stack([head[one.tokens] for one in found])
        # Of all tokens only the values' logits are wanted.
        first.lm_head = torch.nn.Identity()
        length = self.keys.shape[-1]
        hidden = torch.full((length, length), -1e9).triu(1)
        self.mask = hidden[None, None]
        self.places = torch.arange(length)[None]

    def _logits(
        self, tensors: Mapping[str, torch.Tensor], keys: torch.Tensor, head: torch.Tensor
    ) -> torch.Tensor:
        """Return one adapter's logits (keys, VALUES) of the values."""
        given = {
            "input_ids": keys,
            "attention_mask": self.mask.expand(len(keys), -1, -1, -1),
            "position_ids": self.places.expand(len(keys), -1),
            "use_cache": False,
        }
        return functional_call(self.adapted, dict(tensors), (), given).logits[:, -1] @ head.t()

    def losses(self, rows: torch.Tensor, reduction: str) -> torch.Tensor:
        """Return each adapter's losses on some of its pairs, whose numbers are (adapters, batch)."""
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

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """Return (adapters, batch, VALUES)."""
        keys = self.keys.gather(1, rows[..., None].expand(-1, -1, self.keys.shape[-1]))
        return vmap(self._logits)({**self.pieces(), **self.fixed}, keys, self.heads)

    def train(self, steps: int, rates: torch.Tensor) -> list[list[float]]:
        """Train all; return twelve losses of each, means over as many stretches of the steps."""
        first = torch.zeros_like(self.flat)
        second = torch.zeros_like(self.flat)
        draws = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        warm = max(1, round(WARM_UP * steps))
        count = self.keys.shape[1]
        size = count // BATCHES
        told = []
        for step in range(steps):
            if step % BATCHES == 0:
                order = torch.stack([torch.randperm(count, generator=draw) for draw in draws])
            at = step % BATCHES * size
            loss = self.losses(order[:, at : at + size], "mean")
            (gradient,) = torch.autograd.grad(loss.sum(), self.flat)
            told.append(loss.detach())
            norm = gradient.norm(dim=1, keepdim=True)
            gradient = gradient * (LARGEST_NORM / (norm + 1e-6)).clamp(max=1)
            first.lerp_(gradient, 1 - BETAS[0])
            second.lerp_(gradient * gradient, 1 - BETAS[1])
            done = (step - warm) / (steps - warm)
            part = (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * done))
            size_of_step = part * rates[:, None] / (1 - BETAS[0] ** (step + 1))
            root = (second / (1 - BETAS[1] ** (step + 1))).sqrt()
            with torch.no_grad():
                self.flat -= size_of_step * first / (root + EPSILON)
        stretches = torch.stack(told, 1).tensor_split(min(12, steps), 1)
        return torch.stack([part.mean(1) for part in stretches], 1).tolist()

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


def _tensors(model: Any) -> dict[str, torch.Tensor]:
    """Return an adapter's tensors by their names in the model."""
    return {name: tensor for name, tensor in model.named_parameters() if "bishare_tensors" in name}


def _size(model: Any) -> int:
    with tempfile.TemporaryDirectory() as folder:
        model.bishare.save_pretrained(folder)
        return sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))
