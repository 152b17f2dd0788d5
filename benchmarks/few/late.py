"""The last two blocks of SmolLM2 with many adapters at once.

Adapters are lanes ``(G, T)``: G libraries, seeds or rates, and T tasks each. A tensor that all tasks of a
library share has T = 1. The states below the blocks are computed once for each item of a family; logits are
computed at the last token and for a task's three options alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bishare_dsl import compile_spec

LATE = 2
"""Blocks with adapters, the last ones."""
SCALE = 2.0
"""Of every term, as in the specs."""


class Site(NamedTuple):
    """A tensor of an adapter.

    Attributes:
        share: the share's name in the spec.
        block: counted from the first adapted one.
        kind: of the module, such as ``q_proj``.
        role: ``A``, ``core`` or ``B``.
    """

    share: str
    block: int
    kind: str
    role: str


Tensors = Mapping[Site, Tensor]


class Items(NamedTuple):
    """The items of a family.

    Attributes:
        states: what the blocks below return, (items, length, width), padded at the start; of `Late.beyond`
            (G, items, length, width).
        real: whether a position is a token, (items, length).
        done: how many of the adapted blocks these states are beyond.
    """

    states: Tensor
    real: Tensor
    done: int = 0


@torch.no_grad()
def items_of(model: Any, prompts: Sequence[Sequence[int]], count: int = LATE) -> Items:
    """Run the blocks below the last ``count`` over the prompts, once."""
    below = copy.copy(model.model)
    below._modules = {**model.model._modules, "norm": nn.Identity()}
    below._modules["layers"] = model.model.layers[: len(model.model.layers) - count]
    length = max(map(len, prompts))
    states = torch.zeros(len(prompts), length, model.config.hidden_size)
    real = torch.zeros(len(prompts), length, dtype=torch.bool)
    by_length: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(number)
    for tokens, numbers in by_length.items():
        for some in torch.tensor(numbers).split(64):
            ids = torch.tensor([list(prompts[i]) for i in some.tolist()])
            states[some, -tokens:] = below(input_ids=ids, use_cache=False)[0].float()
            real[some, -tokens:] = True
    return Items(states, real)


class Late:
    """The last blocks.

    Args:
        model: a Llama whose heads are tied to its embedding or not.
        count: how many blocks.
    """

    def __init__(self, model: Any, count: int = LATE) -> None:
        config, self.count = model.config, count
        self.heads, self.kv = config.num_attention_heads, config.num_key_value_heads
        self.width, self.eps = config.head_dim, config.rms_norm_eps
        self.theta = config.rope_parameters["rope_theta"]
        self.blocks = [
            {name: p.detach().float() for name, p in block.named_parameters()}
            for block in model.model.layers[-count:]
        ]
        self.norm = model.model.norm.weight.detach().float()
        self.head = model.lm_head.weight.detach().float()
        short = copy.copy(model)
        short.config = copy.deepcopy(config)
        short.config.num_hidden_layers = count
        short._modules = {**model._modules, "model": copy.copy(model.model)}
        short.model._modules = {**model.model._modules}
        short.model._modules["layers"] = nn.ModuleList(model.model.layers[-count:])
        short.model.config = short.config
        self.short = copy.deepcopy(short)
        for number, block in enumerate(self.short.model.layers):
            block.self_attn.layer_idx = number

    def start(self, spec: str, seed: int, **params: Any) -> dict[Site, Tensor]:
        """Return what bishare's compiler starts an adapter of a spec at, (1, 1, ...) each."""
        adapted = compile_spec(spec, copy.deepcopy(self.short), seed=seed, params=params)
        found = {}
        for name, p in adapted.named_parameters():
            if "bishare_tensors" in name:
                share, _, block, *_, kind, role = name.rpartition(".")[2].split("__")
                found[Site(share, int(block), kind, role)] = p.detach().float()[None, None]
        return found

    def states(self, tensors: Tensors, items: Items, rows: Tensor) -> Tensor:
        """Return the final states at the last token.

        Args:
            tensors: of all adapters, (G or 1, T or 1, rows, columns) each.
            items: the family's.
            rows: the items that each adapter reads, (G, T, B).

        Returns:
            (G, T, B, width).
        """
        lanes = torch.arange(rows.shape[0])[:, None, None]
        x = items.states[lanes, rows] if items.done else items.states[rows]
        x = self._blocks(range(items.done, self.count), tensors, x, items.real[rows])
        return self._normed(x[..., 0, :], self.norm)

    @torch.no_grad()
    def beyond(self, frozen: Tensors, items: Items, count: int) -> Items:
        """Return the states beyond the first block, for training that changes nothing in it.

        Args:
            frozen: of all tasks of a library, (G, 1, rows, columns) each.
            items: the family's.
            count: G.
        """
        parts = []
        for rows in torch.arange(len(items.states)).split(100):
            every = rows.expand(count, 1, -1)
            x = self._blocks(range(1), frozen, items.states[every], items.real[every])
            parts.append(x[:, 0])
        return Items(torch.cat(parts, 1), items.real, 1)

    def _blocks(self, numbers: range, tensors: Tensors, x: Tensor, real: Tensor) -> Tensor:
        """Return what some blocks make of (G, T, B, length, width)."""
        terms, real, length = _terms(tensors), real.flatten(0, 2), x.shape[3]
        seen = real[:, None, :] & torch.ones(length, length, dtype=torch.bool).tril()
        # A padded position sees itself, so that no row of the softmax is empty.
        seen |= torch.eye(length, dtype=torch.bool)
        for number in numbers:
            last, weights = number == self.count - 1, self.blocks[number]
            x = self._block(number, weights, terms, x, seen[:, -1:] if last else seen, last=last)
        return x

    def logits(self, states: Tensor, options: Tensor) -> Tensor:
        """Return (G, T, B, options) of final states; ``options`` are token ids (G, T, options).

        Without options the last axis is the whole vocabulary.
        """
        if not options.shape[-1]:
            return states @ self.head.T
        return states @ self.head[options].mT

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * weight

    def _block(
        self,
        number: int,
        weights: Mapping[str, Tensor],
        terms: Mapping[tuple[int, str], Sequence[tuple[Tensor, ...]]],
        x: Tensor,
        seen: Tensor,
        *,
        last: bool,
    ) -> Tensor:
        """Return the block's output; of the last one at the last token alone."""

        def linear(y: Tensor, part: str, kind: str) -> Tensor:
            out = F.linear(y, weights[f"{part}.{kind}.weight"])
            for factors in terms.get((number, kind), ()):
                out = out + _term(y, factors)
            return out

        y = self._normed(x, weights["input_layernorm.weight"])
        query = y[..., -1:, :] if last else y
        q = linear(query, "self_attn", "q_proj")
        k, v = (linear(y, "self_attn", kind) for kind in ("k_proj", "v_proj"))
        attended = self._attended(q, k, v, seen).reshape(q.shape)
        x = (x[..., -1:, :] if last else x) + linear(attended, "self_attn", "o_proj")
        y = self._normed(x, weights["post_attention_layernorm.weight"])
        gate = linear(y, "mlp", "gate_proj")
        inner = F.silu(gate) * linear(y, "mlp", "up_proj")
        return x + linear(inner, "mlp", "down_proj")

    def _attended(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
        length, asked = k.shape[3], q.shape[3]
        times = self.heads // self.kv
        q = _turned(q.reshape(-1, asked, self.kv, times, self.width), self.theta, length - asked)
        k = _turned(k.reshape(-1, length, self.kv, 1, self.width), self.theta, 0)
        q = q.permute(0, 2, 3, 1, 4).flatten(2, 3)  # (N, kv, times * asked, width)
        k = k.squeeze(3).permute(0, 2, 3, 1)
        v = v.reshape(-1, length, self.kv, self.width).transpose(1, 2)
        scores = (q @ k / math.sqrt(self.width)).unflatten(2, (times, asked))
        chances = scores.masked_fill(~seen[:, None, None], -torch.inf).softmax(-1)
        return (chances.flatten(2, 3) @ v).unflatten(2, (times, asked)).permute(0, 3, 1, 2, 4)


def _turned(x: Tensor, theta: float, first: int) -> Tensor:
    """Return heads (N, length, kv, times, width) turned by their positions (RoPE)."""
    cos, sin = _angles(x.shape[-1], theta, first, x.shape[1])
    one, two = x.chunk(2, -1)
    return x * cos + torch.cat([-two, one], -1) * sin


@cache
def _angles(width: int, theta: float, first: int, count: int) -> tuple[Tensor, Tensor]:
    turns = 1 / theta ** (torch.arange(0, width, 2).float() / width)
    angles = torch.outer(torch.arange(first, first + count).float(), turns).repeat(1, 2)
    return angles.cos()[:, None, None], angles.sin()[:, None, None]


def _terms(tensors: Tensors) -> dict[tuple[int, str], list[tuple[Tensor, ...]]]:
    """Return the factors of each module's terms, from A to B."""
    by_term: dict[tuple[str, int, str], dict[str, Tensor]] = {}
    for site, tensor in tensors.items():
        by_term.setdefault(site[:3], {})[site.role] = tensor
    found: dict[tuple[int, str], list[tuple[Tensor, ...]]] = {}
    for (_, block, kind), roles in by_term.items():
        core = [roles["core"].mT] if "core" in roles else []
        found.setdefault((block, kind), []).append((roles["A"], *core, roles["B"].mT))
    return found


def _term(x: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """Return a term of (G, T, B, L, width)."""
    y = x.flatten(2, 3)
    for factor in factors:  # (G or 1, T or 1, out, in)
        if factor.shape[1] == 1:  # Shared: all tasks of a library are rows of one product.
            y = (y.flatten(1, 2) @ factor[:, 0].mT).reshape(*y.shape[:3], -1)
        else:
            y = y @ factor.mT
    return SCALE * y.reshape(*x.shape[:4], -1)
