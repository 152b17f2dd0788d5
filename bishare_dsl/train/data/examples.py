"""Encoded examples, in eight bytes a token, and several of them in one sequence, so that less is padding."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from datasets import Dataset

IGNORED = -100
"""The label of a token that is not trained on."""


class Example(TypedDict):
    """One sequence. ``labels`` are the ids of the trained tokens, and -100 elsewhere, unshifted."""

    input_ids: list[int]
    labels: list[int]
    position_ids: NotRequired[list[int]]
    """Only in packed sequences: starts again at 0 with every example."""


class Examples(Sequence[Example]):
    """Examples as a sequence.

    Args:
        columns: what an `Example` has, for all tokens, one example behind the other.
        lengths: of the examples, in tokens.
    """

    def __init__(self, columns: Mapping[str, NDArray[np.int32]], lengths: Sequence[int]):
        self.columns = columns
        self.starts = np.cumsum([0, *lengths], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        part = slice(self.starts[number], self.starts[number + 1])
        return {name: values[part].tolist() for name, values in self.columns.items()}

    def dataset(self) -> Dataset:
        """Return the same as a data set of `datasets`, which TRL takes; its memory is our own."""
        import pyarrow as pa  # type: ignore[import-untyped]
        from datasets import Dataset

        starts, lists = pa.array(self.starts), pa.LargeListArray.from_arrays
        columns = {n: lists(starts, pa.array(values)) for n, values in self.columns.items()}
        return Dataset(pa.table(columns), fingerprint="bishare")  # Else it would hash all of it.


def pack(examples: Examples, max_length: int) -> Examples:
    """Put examples together into sequences of at most ``max_length`` tokens: best fit, longest first.

    (Ding et al. 2024, Fewer Truncations Improve Language Modeling, https://arxiv.org/abs/2404.10830.)
    Every token stays, in its example's order; ``position_ids`` start again at 0 with every example,
    and the first token of an example is never predicted from the example before. The result depends
    on nothing but the lengths. `Collator` makes batches in which no example sees another, and
    `check_packing` sees that a model keeps to that.

    Raises:
        ValueError: an example is longer than ``max_length``.
    """
    lengths = np.diff(examples.starts).tolist()
    if (longest := max(lengths, default=0)) > max_length:
        raise ValueError(f"an example of {longest} tokens does not fit {max_length}")
    packs: list[list[int]] = []
    with_space: dict[int, list[int]] = defaultdict(list)  # Packs by the space left in them.
    spaces: list[int] = []  # Those of which there are packs, ascending.
    # Stable, so that examples of one length are packed in their order.
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fit = bisect_left(spaces, lengths[index])
        if fit < len(spaces):
            space = spaces[fit]
            number = with_space[space].pop()
            if not with_space[space]:
                del spaces[fit]
        else:
            space, number = max_length, len(packs)
            packs.append([])
        packs[number].append(index)
        if left := space - lengths[index]:
            if not with_space[left]:
                insort(spaces, left)
            with_space[left].append(number)
    # In the order of the data, since the longest example of all is no good place to begin.
    packs = sorted(sorted(indices) for indices in packs)
    parts = [np.arange(*examples.starts[i : i + 2]) for indices in packs for i in indices]
    order = np.concatenate([*parts, np.arange(0)])
    columns = {name: values[order] for name, values in examples.columns.items()}
    positions = [np.arange(len(part), dtype=np.int32) for part in parts]
    columns["position_ids"] = np.concatenate([*positions, np.arange(0, dtype=np.int32)])
    return Examples(columns, [sum(lengths[i] for i in indices) for indices in packs])
