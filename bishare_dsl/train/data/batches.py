"""Encoded examples, batches of them, and a check that a model separates packed examples."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from bishare_dsl.diagnostics import DataError
from bishare_dsl.diagnostics.codes import data as codes

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IGNORED = -100
"""The label of tokens without loss."""

ALLOWED = "allowed"

Example = dict[str, Any]
"""``input_ids`` and ``labels``: the ids of the trained tokens, and -100 elsewhere, unshifted. Packed
examples have ``seq_lengths``. Examples with options have ``allowed``: for each trained token, the ids that
an option allows there.
"""


def dataset_of(
    ids: NDArray[np.int32], labels: NDArray[np.int32], lengths: Sequence[int]
) -> Dataset:
    """Return examples as a data set of `datasets`, without copying them.

    Args:
        ids: the token ids of all examples, concatenated.
        labels: the labels of these tokens.
        lengths: the lengths of the examples in tokens.
    """
    import pyarrow as pa  # type: ignore[import-untyped]
    from datasets import Dataset

    starts = pa.array(np.cumsum([0, *lengths], dtype=np.int64))
    columns = {
        name: pa.LargeListArray.from_arrays(starts, pa.array(values))
        for name, values in (("input_ids", ids), ("labels", labels))
    }
    return Dataset(pa.table(columns), fingerprint="bishare")  # Avoids hashing all of it.


@dataclass(frozen=True)
class Collator:
    """A `data_collator` for Trainer.

    Plain examples are padded on the right: ``input_ids``, ``attention_mask`` and ``labels`` (-100 where
    padded), each of shape (batch, longest).

    Packed examples have ``position_ids`` and no ``attention_mask``. transformers then separates the
    examples, but only without a cache, so the batch sets ``use_cache=False``. Padding is one more example
    without trained tokens.

    Args:
        pad_token_id: any id in the model's embedding.
        flatten: put a packed batch into one row of shape (1, all tokens), without padding. Flash attention
            needs it, since it detects packed examples only in batches of one row.
    """

    pad_token_id: int
    flatten: bool = False

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, *, flatten: bool = False) -> Collator:
        """Create a collator with the tokenizer's padding token, or another of its tokens."""
        ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        return cls(next(i for i in ids if isinstance(i, int)), flatten)

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Return int64 tensors for the model's forward."""
        columns = {name: [e[name] for e in examples] for name in ("input_ids", "labels")}
        packed = "seq_lengths" in examples[0]
        if packed:
            lengths = [example["seq_lengths"] for example in examples]
            columns["position_ids"] = [[p for n in row for p in range(n)] for row in lengths]
        else:
            columns["attention_mask"] = [[1] * len(ids) for ids in columns["input_ids"]]
        if packed and self.flatten:
            columns = {name: [[*chain(*rows)]] for name, rows in columns.items()}
        longest = max(map(len, columns["input_ids"]))
        padding = {"input_ids": [self.pad_token_id] * longest, "labels": [IGNORED] * longest}
        padding |= {"position_ids": [*range(longest)], "attention_mask": [0] * longest}
        batch: dict[str, Any] = {
            name: torch.tensor([row + padding[name][: longest - len(row)] for row in rows])
            for name, rows in columns.items()
        }
        if ALLOWED in examples[0]:
            batch[ALLOWED] = _allowed(examples, longest)
        if not packed:
            return batch
        # The first token must not be predicted from the previous example.
        batch["labels"][batch["position_ids"] == 0] = IGNORED
        return batch | {"use_cache": False}


def _allowed(examples: Sequence[Example], longest: int) -> torch.Tensor:
    """Return the allowed ids per position, ``(batch, longest, most)``, padded with -1."""
    most = max(len(ids) for example in examples for ids in example[ALLOWED])
    allowed = torch.full((len(examples), longest, most), -1)
    for row, example in enumerate(examples):
        places = [i for i, label in enumerate(example["labels"]) if label != IGNORED]
        for place, ids in zip(places, example[ALLOWED], strict=False):  # The end may be truncated.
            allowed[row, place, : len(ids)] = torch.tensor(ids)
    return allowed


_SAME = 6
_TOLERANCE = 0.5
"""In standard deviations of the logits. Rounding in bfloat16 causes up to 0.08, a leak at least 1.7."""


@torch.no_grad()
def check_packing(model: PreTrainedModel, collator: Collator) -> None:
    """Check on a few tokens that the model separates packed examples. Call it before training.

    The same example follows two others of different lengths, in batches of two rows. Its logits must be
    equal up to rounding.

    Raises:
        DataError: they differ (BS725).
    """

    def leaks(reason: str) -> DataError:
        return DataError(codes.LEAKY_PACKING(model=model.config.model_type, reason=reason))

    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise leaks("the model takes no `position_ids`")
    vocabulary: Any = model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(vocabulary, (64,), generator=generator).tolist()
    same, training, logits = drawn[:_SAME], model.training, []
    model.eval()
    try:
        for other in (drawn[_SAME : _SAME + 5], drawn[_SAME + 5 : _SAME + 14]):
            ids = other + same
            row = {"input_ids": ids, "labels": ids, "seq_lengths": [len(other), _SAME]}
            batch = collator([row, row])
            del batch["labels"]
            on_device = {k: v.to(model.device) for k, v in batch.items() if k != "use_cache"}
            found = model(**batch | on_device).logits  # (batch, tokens, vocabulary)
            logits.append(found[-1, -_SAME:].float())
    finally:
        model.train(training)
    first, second = logits
    if not (first - second).abs().max() / first.std() < _TOLERANCE:
        raise leaks("what it says about an example depends on the one packed before it")
