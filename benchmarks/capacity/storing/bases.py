"""The frozen base models that store pairs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from bishare_dsl.resources import cache_folder
from examples.smollm2 import smollm2_folder

VALUES = 256
"""So many tokens are values: a pair has eight bits."""


PARAMETERS_OF_A_PAIR = 5.4
"""At a budget there is a pair for so many parameters: more than any topology stores, 1.5 bits each."""


@dataclass(frozen=True)
class Base:
    """A frozen model, and its budgets.

    Attributes:
        name: of it, in results.
        budgets: trained parameters. The primary one is LoRA r=1 on q, k, v, up and down of each layer; then
            about a quarter of it, and three times it. Modules of a wide model are dear: of SmolLM2 the others
            are two ranks of `up`, a fifth, and one.
        gated: the budget whose pairs tell whether capacity decides: the primary one, or a cheaper one.
        batches: of an epoch.
        steps: of training.
        warm_up: the part of them in which the rate rises.
        follows: whether keys follow the tokens that begin a turn, as a trained model is used to.
    """

    name: str
    budgets: tuple[int, int, int]
    gated: int
    batches: int = 6
    steps: int = 120
    warm_up: float = 0.05
    follows: bool = False

    def pairs(self, budget: int) -> int:
        """Return how many pairs there are at a budget; the batches divide them."""
        return self.batches * round(budget / PARAMETERS_OF_A_PAIR / self.batches)

    def load(self) -> Any:
        """Return the model, without an adapter: of SmolLM2 the blocks that train."""
        return smollm2(slice(-BLOCKS, None)) if self.follows else _random()

    def tokens(self, count: int, seed: int) -> torch.Tensor:
        """Draw so many tokens, none of them twice: the values' come first."""
        draw = torch.Generator().manual_seed(seed)
        # The first tokens of SmolLM2 are special tokens.
        return 256 + torch.randperm(VOCABULARY - 256, generator=draw)[:count]


VOCABULARY = 16384
"""Tokens that are drawn from; the real base has more, of which the rest are not used."""
BLOCKS = 3
"""Of SmolLM2, the last ones."""
TURN = (1, 4093, 198)
"""The tokens that begin a user's turn, `<|im_start|>user` and a line feed.

After the first alone the blocks below make 7% of the keys attention sinks, whose states are all alike.
"""
WIDTH, MLP, LAYERS, HEADS, GROUPS = 64, 192, 5, 4, 2


def _random() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        max_position_embeddings=8,
        # So that each block writes about as much as it reads.
        initializer_range=WIDTH**-0.5,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config)


def smollm2(blocks: slice) -> Any:
    """Return SmolLM2 in bfloat16 with some of its blocks alone."""
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        smollm2_folder(cache_folder()), dtype=torch.bfloat16, attn_implementation="eager"
    )
    kept = model.model.layers[blocks]
    for number, block in enumerate(kept):
        block.self_attn.layer_idx = number
    model.model.layers, model.config.num_hidden_layers = kept, len(kept)
    return model


@cache
def trunk() -> Any:
    """Return the frozen part of SmolLM2: the blocks below the trained ones, without a norm at the end."""
    model = smollm2(slice(None, -BLOCKS)).model
    model.norm = torch.nn.Identity()
    return model


BASES = {
    base.name: base
    for base in (
        Base("random", (4_160, 1_040, 12_480), gated=4_160),
        Base("smollm2", (20_736, 4_224, 2_112), 4_224, 24, 480, warm_up=0.25, follows=True),
    )
}
