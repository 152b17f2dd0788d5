"""The tokens of a batch by the slots of their adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from bishare_dsl.serve.bank import Bank
from bishare_dsl.serve.terms import Place

Made = TypeVar("Made")


def part_of(tensor: Tensor, axis: int, part: slice) -> Tensor:
    """Return a part of an axis: the tensor itself where that is all of it, for each view takes time."""
    count: int = part.stop - part.start
    return tensor if tensor.shape[axis] == count else tensor.narrow(axis, part.start, count)


@dataclass(frozen=True)
class Group:
    """Adapters that have about as many tokens each: ``R`` of ``n`` tokens, the shorter ones padded.

    Attributes:
        bank: that has them.
        rows: theirs in the bank: a slice where they lie side by side, so that nothing is copied.
        place: of the group's tokens among those of the `Batch`.
        length: ``n``.
    """

    bank: Bank
    rows: slice | Tensor
    place: slice
    length: int

    def tensor(self, place: Place) -> Tensor:
        """Return a tensor of each of the adapters, ``(R, rows, columns)``."""
        whole = self.bank.view(place)
        if isinstance(self.rows, slice):
            return whole[self.rows]
        if not place.common:
            return whole.index_select(0, self.rows)
        shared: Tensor = whole[:1].expand(len(self.rows), -1, -1)
        return shared

    def view(self, key: object, make: Callable[[], Made]) -> Made:
        """Return views of the adapters' tensors, which stay right while others come into these rows."""
        return self._kept(self.bank.views, key, make)

    def copy(self, key: object, make: Callable[[], Made]) -> Made:
        """Return what is made of the adapters' tensors, once for as long as these stay as they are."""
        return self._kept(self.bank.copies, key, make)

    def _kept(self, found: dict[Any, Any], key: object, make: Callable[[], Made]) -> Made:
        if not isinstance(self.rows, slice):
            return make()
        place = key, self.rows.start, self.rows.stop
        if place not in found:
            found[place] = make()
        kept: Made = found[place]
        return kept

    def of(self, tokens: Tensor) -> Tensor:
        """Return the group's part of ``(tokens, d)`` of the batch, ``(R, n, d)``."""
        return part_of(tokens, 0, self.place).view(-1, self.length, tokens.shape[1])


class Batch(NamedTuple):
    """The tokens of a batch, adapter by adapter.

    Attributes:
        groups: of them.
        tokens: which they are, where they are in order already.
        order: else which token stands at each place.
        places: and where each token stands; those without an adapter, behind all.
    """

    groups: tuple[Group, ...] = ()
    tokens: slice = slice(0)
    order: Tensor | None = None
    places: Tensor | None = None

    def read(self, x: Tensor) -> Tensor:
        """Return ``x (tokens, d)`` adapter by adapter."""
        return part_of(x, 0, self.tokens) if self.order is None else x.index_select(0, self.order)

    def room(self, output: Tensor) -> Tensor:
        """Return where to add what is for ``output (tokens, d)``, adapter by adapter: itself if it can be."""
        if self.order is None:
            return part_of(output, 0, self.tokens)
        return output.new_zeros(len(self.order) + 1, output.shape[1])

    def add(self, output: Tensor, room: Tensor) -> None:
        """Add to an output what `room` has for it."""
        if self.places is not None:
            output[: len(self.places)] += room.index_select(0, self.places)


TILE = 16
"""The most tokens of one adapter that a kernel takes at once: what a product of a GPU has at least."""


class Step:
    """What a step depends on, in a buffer of a fixed size that is written before it.

    What is computed has shapes that depend on the server's settings alone, so that a step which was recorded,
    as CUDA graphs do, is right for every batch that is written later.

    Args:
        bank: of the adapters.
        tokens: the most that a step has.

    Attributes:
        slots: of each token, ``(tokens,)``; one without an adapter has the row of the bank that stays zero.
        order: the tokens by their slots, those without an adapter last.
        tiles: of each tile its slot, -1 where there is none, and which part of ``order`` it has:
            ``(tiles, 3)``.
    """

    def __init__(self, bank: Bank, tokens: int):
        self.bank, self._tokens = bank, tokens
        count = 2 * tokens + 3 * self.tiles_of(tokens)
        self._buffer = torch.zeros(count, dtype=torch.int32, device=bank.memory.device)
        self.slots, self.order, tiles = self._buffer.split([tokens, tokens, count - 2 * tokens])
        self.tiles = tiles.view(-1, 3)
        self.write([])

    def tiles_of(self, tokens: int) -> int:
        """Return the most tiles that so many tokens are in."""
        return min(tokens, tokens // TILE + min(tokens, self.bank.slots))

    def write(self, slots: Sequence[int]) -> None:
        """Write the slot of each token; -1 for one that has no adapter."""
        none = self.bank.slots
        found = np.full(self._tokens, none, np.int32)
        # The last row is that of no adapter.
        found[: len(slots)] = self.bank.row[np.asarray(slots, np.int32)]
        tiles = np.full((len(self.tiles), 3), -1, np.int32)
        used, starts, counts = np.unique(np.sort(found), return_index=True, return_counts=True)
        cut = [
            (slot, first, min(first + TILE, start + count))
            for slot, start, count in zip(used, starts, counts, strict=True)
            for first in range(start, start + count, TILE)
            if slot != none
        ]
        tiles[: len(cut)] = np.reshape(cut, (-1, 3))
        order = np.argsort(found, kind="stable").astype(np.int32)
        host = torch.from_numpy(np.concatenate([found, order, tiles.ravel()]))
        if self._buffer.is_cuda:
            host = host.pin_memory()  # So that nobody waits for the copy.
        self._buffer.copy_(host, non_blocking=True)

    def batch(self, tokens: int) -> Batch:
        """Return the first tokens of the step, each a row by itself."""
        whole = slice(0, tokens)
        return Batch((Group(self.bank, self.slots[whole], whole, 1),), whole)


APART = 128
"""With as many tokens an adapter is in no group but with others that have the same number."""


def group_tokens(bank: Bank, slots: Sequence[int]) -> Batch:
    """Group the tokens of a batch by how many their adapters have, and bring these to the front of the bank.

    Padding at most doubles the work. Groups, and adapters in them, come in the order of the tokens.

    Args:
        bank: of the adapters, on a CPU.
        slots: of the adapter of each token; negative for a token that has none.
    """
    of_token = np.asarray(slots, np.int64)
    tokens = np.flatnonzero(of_token >= 0)
    tokens = tokens[np.argsort(of_token[tokens], kind="stable")]
    used, starts, counts = np.unique(of_token[tokens], return_index=True, return_counts=True)
    first = tokens[starts]
    sizes = np.where(counts < APART, 2 ** np.ceil(np.log2(np.maximum(counts, 1))), counts)
    of_size = [first[sizes == size].min() for size in sizes]
    by_token = np.lexsort((first, of_size))
    bank.bring(used[by_token].tolist())
    groups, flat, row = [], np.empty(0, np.int64), 0
    for _, same in groupby(by_token, key=lambda number: sizes[number]):
        chosen = [*same]
        placed = np.full((len(chosen), counts[chosen].max()), -1)
        for line, number in zip(placed, chosen, strict=True):
            line[: counts[number]] = tokens[starts[number] : starts[number] + counts[number]]
        rows, place = slice(row, row + len(chosen)), slice(len(flat), len(flat) + placed.size)
        groups.append(Group(bank, rows, place, placed.shape[1]))
        flat, row = np.append(flat, placed), rows.stop
    start = int(flat[0]) if groups else 0
    if (flat == np.arange(start, start + len(flat))).all():
        return Batch(tuple(groups), slice(start, start + len(flat)))
    places = np.full(len(of_token), len(flat))
    places[flat[flat >= 0]] = np.flatnonzero(flat >= 0)
    order = torch.from_numpy(np.maximum(flat, 0))
    return Batch(tuple(groups), order=order, places=torch.from_numpy(places))
