"""Measure how often a model prefers the correct option of an example."""

from __future__ import annotations

from typing import Any

import torch

from bishare_dsl.diagnostics import DataError
from bishare_dsl.diagnostics.codes import data as codes
from bishare_dsl.train.data.encoding import encode
from bishare_dsl.train.data.formats import OPTIONS
from bishare_dsl.train.loss import among_options, are_likeliest, learned_logits


def encode_choices(rows: Any, tokenizer: Any) -> Any:
    """Encode rows that have options, without truncation.

    Raises:
        DataError: see `encode`; or rows have no options (BS711).
    """
    examples = encode(rows, tokenizer, max_length=2**31 - 1).examples
    if not among_options(examples):
        raise DataError(codes.MISSING_FIELD(place=rows.place(0), field=OPTIONS))
    return examples


@torch.no_grad()
def choice_accuracy(model: Any, examples: Any, collator: Any, batch: int = 16) -> float:
    """Return the fraction of examples whose correct option is decoded greedily among the options.

    Args:
        model: in eval mode.
        examples: from `encode_choices`.
        collator: makes batches.
        batch: the batch size.
    """
    correct, device = 0, next(model.parameters()).device
    for start in range(0, len(examples), batch):
        part: Any = [examples[i] for i in range(start, min(start + batch, len(examples)))]
        inputs = {name: tensor.to(device) for name, tensor in collator(part).items()}
        correct += int(are_likeliest(*learned_logits(model, model.forward, inputs)).sum())
    return correct / len(examples)
