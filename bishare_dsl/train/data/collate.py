"""Examples to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bishare_dsl.train.data.examples import Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Collator:
    """A `data_collator` for Trainer; keep `remove_unused_columns` from dropping ``position_ids``.

    Plain examples are padded on the right: ``input_ids``, ``attention_mask`` and ``labels`` (-100
    where padded), each of shape (batch, longest).

    Packed examples have ``position_ids`` and no ``attention_mask``, from which transformers masks
    each example from the others; that needs ``use_cache=False``, which is in the batch too.

    Args:
        pad_token_id: any id that the model's embedding has.
        flatten: put a packed batch into one row of shape (1, all tokens), without padding. Flash
            attention needs it: it looks for packed examples in batches of one row alone.
    """

    pad_token_id: int
    flatten: bool = False

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, *, flatten: bool = False) -> Collator:
        """With the tokenizer's padding token, or another where it has none."""
        raise NotImplementedError

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        raise NotImplementedError


def check_packing(model: PreTrainedModel, collator: Collator) -> None:
    """See on a batch of a few tokens that the model keeps packed examples apart. Call it before training.

    Raises:
        DataError: what the model says about an example depends on its neighbours (BS719).
    """
    raise NotImplementedError
