"""Encoded examples, in eight bytes a token; batches; and a model's word that it keeps packed ones apart."""

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
"""The label of a token that is not trained on."""

ALLOWED = "allowed"

Example = dict[str, Any]
"""``input_ids``, and ``labels``: the ids of the trained tokens, and -100 elsewhere, unshifted. A packed one
has the ``seq_lengths`` of the examples in it. One that is learned among options has ``allowed``: of each
trained token, the ids that may stand there."""


def dataset_of(
    ids: NDArray[np.int32], labels: NDArray[np.int32], lengths: Sequence[int]
) -> Dataset:
    """Return examples as a data set of `datasets`, in the memory that they have.

    Args:
        ids: of all tokens, one example after the other.
        labels: of the same tokens.
        lengths: of the examples, in tokens.
    """
    import pyarrow as pa  # type: ignore[import-untyped]
    from datasets import Dataset

    starts = pa.array(np.cumsum([0, *lengths], dtype=np.int64))
    columns = {
        name: pa.LargeListArray.from_arrays(starts, pa.array(values))
        for name, values in (("input_ids", ids), ("labels", labels))
    }
    return Dataset(pa.table(columns), fingerprint="bishare")  # Else it would hash all of it.


@dataclass(frozen=True)
class Collator:
    """A `data_collator` for Trainer.

    Plain examples are padded on the right: ``input_ids``, ``attention_mask`` and ``labels`` (-100
    where padded), each of shape (batch, longest).

    Packed examples have ``position_ids`` and no ``attention_mask``: from that transformers masks each
    example from the others, if there is no cache; so ``use_cache=False`` is in the batch too. Padding
    is one more example, of which no token is trained on.

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
        # Its first token is not predicted from the example before.
        batch["labels"][batch["position_ids"] == 0] = IGNORED
        return batch | {"use_cache": False}


def _allowed(examples: Sequence[Example], longest: int) -> torch.Tensor:
    """Return the ids that may stand at each place, ``(batch, longest, most)``, -1 behind them."""
    most = max(len(ids) for example in examples for ids in example[ALLOWED])
    found = torch.full((len(examples), longest, most), -1)
    for row, example in enumerate(examples):
        places = [i for i, label in enumerate(example["labels"]) if label != IGNORED]
        for place, ids in zip(places, example[ALLOWED], strict=False):  # The end may be cut off.
            found[row, place, : len(ids)] = torch.tensor(ids)
    return found


_SAME = 6
_TOLERANCE = 0.5
"""Of the logits' standard deviation. Rounding in bfloat16 gives up to 0.08, a leak 1.7 and more."""


@torch.no_grad()
def check_packing(model: PreTrainedModel, collator: Collator) -> None:
    """Check on a few tokens that the model keeps packed examples apart. To be called before training.

    The same example is put after two others of different lengths, in batches of two rows. What the
    model says about it must be the same, but for rounding.

    Raises:
        DataError: it is not (BS725).
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
