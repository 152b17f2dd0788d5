"""How often a model prefers the right option of a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from bishare_dsl.diagnostics import DataError
from bishare_dsl.diagnostics.codes import data as codes
from bishare_dsl.train.data.batches import Collator
from bishare_dsl.train.data.encoding import encode
from bishare_dsl.train.data.formats import OPTIONS
from bishare_dsl.train.loss import among_options, are_likeliest, learned_logits

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bishare_dsl.train.data.rows import Rows


def encode_choices(rows: Rows, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Encode rows that have options, at whole length.

    Raises:
        DataError: as `encode`; or rows have no options (BS711).
    """
    found = encode(rows, tokenizer, max_length=2**31 - 1).examples
    if not among_options(found):
        raise DataError(codes.MISSING_FIELD(place=rows.place(0), field=OPTIONS))
    return found


@torch.no_grad()
def choice_accuracy(
    model: PreTrainedModel, examples: Dataset, collator: Collator, batch: int = 16
) -> float:
    """Return the part of rows whose right option is the likeliest, written token by token.

    Args:
        model: in eval mode.
        examples: as `encode_choices` gives them.
        collator: makes batches.
        batch: rows at a time.
    """
    right, device = 0, next(model.parameters()).device
    for start in range(0, len(examples), batch):
        part: Any = [examples[i] for i in range(start, min(start + batch, len(examples)))]
        inputs = {name: tensor.to(device) for name, tensor in collator(part).items()}
        right += int(are_likeliest(*learned_logits(model, model.forward, inputs)).sum())
    return right / len(examples)
