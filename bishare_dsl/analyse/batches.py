"""Rows of text as batches for a model."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

from bishare_dsl.train.data.batches import Collator
from bishare_dsl.train.data.encoding import encode
from bishare_dsl.train.data.load import load_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_LENGTH = 512
"""Tokens of the longest example."""
SIZE = 8
"""Examples of a batch."""


def batches_of(
    data: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase, rows: int
) -> list[dict[str, torch.Tensor]]:
    """Read the first rows of some data, with labels for the tokens that are trained on.

    Raises:
        DataError: they cannot be read or encoded (BS7xx).
    """
    found = load_rows(data)
    found = found.select(range(min(rows, len(found))))
    examples = encode(found, tokenizer, max_length=MAX_LENGTH).examples
    collate = Collator.of(tokenizer)
    return [collate(examples[i : i + SIZE]) for i in range(0, len(examples), SIZE)]


def on_device(batch: dict[str, torch.Tensor], model: PreTrainedModel) -> dict[str, Any]:
    """Put a batch where a model reads it."""
    return {name: tensor.to(model.device) for name, tensor in batch.items()}
