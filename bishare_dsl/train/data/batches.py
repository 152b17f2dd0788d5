"""Encoded examples, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of tokens without loss."""

ALLOWED = "allowed"

Example = dict[str, Any]
"""``input_ids`` and ``labels``: the ids of the trained tokens, and -100 elsewhere, unshifted. Examples with
options have ``allowed``: for each trained token, the ids that an option allows there.
"""


@dataclass(frozen=True)
class Collator:
    """A `data_collator` for Trainer.

    Examples are padded on the right: ``input_ids``, ``attention_mask`` and ``labels`` (-100 where padded),
    each of shape (batch, longest).

    Args:
        pad_token_id: any id in the model's embedding.
    """

    pad_token_id: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Create a collator with the tokenizer's padding token, or another of its tokens."""
        ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        return cls(next(i for i in ids if isinstance(i, int)))

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Return int64 tensors for the model's forward."""
        longest = max(len(example["input_ids"]) for example in examples)
        paddings = {"input_ids": self.pad_token_id, "labels": IGNORED, "attention_mask": 0}
        rows = [{**e, "attention_mask": [1] * len(e["input_ids"])} for e in examples]
        batch: dict[str, Any] = {
            name: torch.tensor([row[name] + [fill] * (longest - len(row[name])) for row in rows])
            for name, fill in paddings.items()
        }
        if ALLOWED in examples[0]:
            batch[ALLOWED] = _allowed(examples, longest)
        return batch

    def predicting(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Return a batch without each last token, which predicts none; labels are unchanged."""
        batch = self(examples)
        mask = F.pad(batch["attention_mask"][:, 2:], (1, 0), value=1)  # A single token is kept.
        return batch | {"input_ids": batch["input_ids"][:, :-1], "attention_mask": mask}


def _allowed(examples: Sequence[Example], longest: int) -> torch.Tensor:
    """Return the allowed ids per position, ``(batch, longest, most)``, padded with -1."""
    most = max(len(ids) for example in examples for ids in example[ALLOWED])
    allowed = torch.full((len(examples), longest, most), -1)
    for row, example in enumerate(examples):
        places = [i for i, label in enumerate(example["labels"]) if label != IGNORED]
        for place, ids in zip(places, example[ALLOWED], strict=False):  # The end may be truncated.
            allowed[row, place, : len(ids)] = torch.tensor(ids)
    return allowed
