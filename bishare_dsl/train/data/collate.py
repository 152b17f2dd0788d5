"""Examples to a batch, and a model's word that it keeps packed ones apart."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from bishare_dsl.diagnostics import DataError
from bishare_dsl.diagnostics.codes import data as codes
from bishare_dsl.train.data.examples import IGNORED, Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Collator:
    """A `data_collator` for Trainer.

    Plain examples are padded on the right: ``input_ids``, ``attention_mask`` and ``labels`` (-100
    where padded), each of shape (batch, longest).

    Packed examples have ``position_ids`` and no ``attention_mask``: from that transformers masks each
    example from the others, if there is no cache; so ``use_cache=False`` is in the batch too. Padding
    is one more example, of which nothing is learnt.

    Args:
        pad_token_id: any id that the model's embedding has.
        flatten: put a packed batch into one row of shape (1, all tokens), without padding. Flash
            attention needs it: it looks for packed examples in batches of one row alone.
    """

    pad_token_id: int
    flatten: bool = False

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, *, flatten: bool = False) -> Collator:
        """Make one with the tokenizer's padding token, or another that it has."""
        ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        return cls(next(i for i in ids if isinstance(i, int)), flatten)

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Make tensors of int64, as the model's forward takes them."""
        packed = "position_ids" in examples[0]
        ids, labels = [e["input_ids"] for e in examples], [e["labels"] for e in examples]
        positions = [e["position_ids"] for e in examples if packed]
        if packed and self.flatten:
            ids, labels, positions = ([[*chain(*rows)]] for rows in (ids, labels, positions))
        longest = max(map(len, ids))
        padding = [longest - len(row) for row in ids]
        batch: dict[str, Any] = {
            "input_ids": _tensor(ids, [[self.pad_token_id] * n for n in padding]),
            "labels": _tensor(labels, [[IGNORED] * n for n in padding]),
        }
        if packed:
            batch["position_ids"] = _tensor(positions, [[*range(n)] for n in padding])
            batch["use_cache"] = False
        else:
            ones = [[1] * len(row) for row in ids]
            batch["attention_mask"] = _tensor(ones, [[0] * n for n in padding])
        return batch


def check_packing(model: PreTrainedModel, collator: Collator) -> None:
    """Check on a few tokens that the model keeps packed examples apart. To be called before training.

    The same example is put behind two others of different lengths, in batches of two rows. What the
    model says about it must be the same, but for rounding.

    Raises:
        DataError: it is not (BS725).
    """
    name = model.config.model_type
    if "position_ids" not in inspect.signature(model.forward).parameters:
        reason = "the model takes no `position_ids`"
        raise DataError(codes.LEAKY_PACKING(model=name, reason=reason))
    vocabulary = model.get_input_embeddings().num_embeddings
    assert isinstance(vocabulary, int)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(vocabulary, (64,), generator=generator).tolist()
    same, others = drawn[:_SAME], (drawn[_SAME : _SAME + 5], drawn[_SAME + 5 : _SAME + 14])
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            first, second = (_behind(model, collator, other, same) for other in others)
    finally:
        model.train(training)
    difference = (first - second).abs().max() / first.std()
    if not difference < _TOLERANCE:
        reason = "what it says about an example depends on the one packed before it"
        raise DataError(codes.LEAKY_PACKING(model=name, reason=reason))


_SAME = 6
_TOLERANCE = 0.5
"""Of the logits' standard deviation. Rounding in bfloat16 gives up to 0.08, a leak 1.7 and more."""


def _behind(
    model: PreTrainedModel, collator: Collator, other: list[int], same: list[int]
) -> torch.Tensor:
    """Compute the logits of an example packed behind another, in a batch's last row: (tokens, vocabulary)."""
    row: Example = {
        "input_ids": other + same,
        "labels": other + same,
        "position_ids": [*range(len(other)), *range(len(same))],
    }
    batch = collator([row, row])
    del batch["labels"]
    batch = {k: v.to(model.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    logits = model(**batch).logits
    assert isinstance(logits, torch.Tensor)
    return logits[-1, -len(same) :].float()


def _tensor(rows: list[list[int]], padding: list[list[int]]) -> torch.Tensor:
    return torch.tensor([row + rest for row, rest in zip(rows, padding, strict=True)])
