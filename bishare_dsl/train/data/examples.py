"""Encoded examples, in five bytes a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from datasets import Dataset

IGNORED = -100
"""The label of a token that is not learnt."""


class Example(TypedDict):
    """One sequence. ``labels`` are the ids of the tokens that are learnt and -100 elsewhere, unshifted."""

    input_ids: list[int]
    labels: list[int]
    position_ids: NotRequired[list[int]]
    """Only in packed sequences: starts again at 0 with every example."""


class Examples(Sequence[Example]):
    """Examples as a sequence.

    Args:
        ids: of all tokens, one example behind the other.
        learnt: which of the tokens count in the loss; the first one of an example never does.
        lengths: of the examples, in tokens.
        packs: which examples stand in which sequence, in order. Without, each is one of its own.
    """

    def __init__(
        self,
        ids: NDArray[np.int32],
        trained: NDArray[np.bool_],
        lengths: Sequence[int],
        packs: Sequence[Sequence[int]] | None = None,
    ):
        self.lengths = lengths
        self._ids, self._trained, self._packs = ids, trained, packs
        self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])

    def __len__(self) -> int:
        return len(self.lengths) if self._packs is None else len(self._packs)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        if self._packs is None:
            return self._example(number)
        parts = [self._example(i) for i in self._packs[number]]
        return {
            "input_ids": [token for part in parts for token in part["input_ids"]],
            "labels": [label for part in parts for label in part["labels"]],
            "position_ids": [i for part in parts for i in range(len(part["input_ids"]))],
        }

    def packed(self, packs: Sequence[Sequence[int]]) -> Examples:
        """Return the same examples, put together."""
        return Examples(self._ids, self._trained, self.lengths, packs)

    def dataset(self) -> Dataset:
        """Return the same as a data set of `datasets`, which is what TRL takes; its memory is our own."""
        import pyarrow as pa  # type: ignore[import-untyped]
        from datasets import Dataset

        order = np.arange(len(self._ids))
        sizes = np.array(self.lengths, dtype=np.int64)
        positions = {}
        if self._packs is not None:
            parts = [range(self._starts[i], self._starts[i + 1]) for p in self._packs for i in p]
            order = np.concatenate([np.arange(part.start, part.stop) for part in parts])
            positions = {"position_ids": np.concatenate([np.arange(len(part)) for part in parts])}
            sizes = np.array([sum(self.lengths[i] for i in pack) for pack in self._packs])
        ids = self._ids[order] if positions else self._ids
        trained = self._trained[order] if positions else self._trained
        columns = {"input_ids": ids, "labels": np.where(trained, ids, IGNORED), **positions}
        offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]))
        table = pa.table(
            {
                name: pa.LargeListArray.from_arrays(offsets, pa.array(values, type=pa.int32()))
                for name, values in columns.items()
            }
        )
        return Dataset(table, fingerprint="bishare")  # Else it would hash all of it.

    def _example(self, number: int) -> Example:
        part = slice(self._starts[number], self._starts[number + 1])
        ids, trained = self._ids[part], self._trained[part]
        return {"input_ids": ids.tolist(), "labels": np.where(trained, ids, IGNORED).tolist()}
