"""Whose adapter each row or token of a batch has, and how to bring those of one adapter together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from bishare_dsl.batched.bank import Slots

T = TypeVar("T")


def numbers_on(device: torch.device, numbers: Sequence[int] | np.ndarray) -> Tensor:
    """Make a tensor of numbers on a device, without waiting for what runs there."""
    return torch.tensor(numbers, dtype=torch.long).to(device, non_blocking=True)


def arrange(groups: Sequence[Sequence[Sequence[int]]], count: int) -> tuple[list[int], list[int]]:
    """Put rows side by side, group by group and in each adapter by adapter.

    Args:
        groups: of each, the rows of its adapters. Adapters with fewer rows than another of their group have
            their first one again.
        count: how many rows there are.

    Returns:
        Which row stands at each place, and at which place each row stands; one that is in no group stands
        behind all.
    """
    order: list[int] = []
    places: dict[int, int] = {}
    for adapters in groups:
        longest = max(map(len, adapters))
        for rows in adapters:
            places |= {row: len(order) + i for i, row in enumerate(rows)}
            order += [*rows, *[rows[0]] * (longest - len(rows))]
    return order, [places.get(row, len(order)) for row in range(count)]


class Grouping(NamedTuple):
    """Which rows of a mixed batch belong to which adapter: one group of all adapters.

    Attributes:
        rows: how many rows have names of their own. The rows of a call may be a multiple, for beam search
            repeats each.
        adapters: how many adapters there are.
        order: the rows, adapter by adapter, as `arrange` gives them; None where they come in that order.
        places: where in that order each row stands.
    """

    rows: int
    adapters: int
    order: Tensor | None = None
    places: Tensor | None = None

    @classmethod
    def of(cls, owners: Sequence[int], device: torch.device) -> Grouping:
        """Group rows by the numbers of their adapters, which start at 0."""
        members: list[list[int]] = [[] for _ in range(max(owners) + 1)]
        for row, owner in enumerate(owners):
            members[owner].append(row)
        order, places = arrange([members], len(owners))
        if order == list(range(len(owners))):
            return cls(len(owners), len(members))
        return cls(len(owners), len(members), numbers_on(device, order), numbers_on(device, places))

    def gather(self, x: Tensor) -> Tensor:
        """Sort by adapter: ``(rows, ..., d)``, or all tokens in one axis, to ``(adapters, tokens, d)``."""
        if self.order is not None:
            x = x.reshape(self.rows, -1, x.shape[-1])
            x = x.index_select(0, self.order.to(x.device))
        return x.reshape(self.adapters, -1, x.shape[-1])

    def owners(self, device: torch.device) -> Tensor:
        """Return the number of each row's adapter."""
        if self.places is None:
            return torch.arange(self.rows, device=device) // (self.rows // self.adapters)
        size = len(self.order) // self.adapters  # type: ignore[arg-type]
        return self.places.to(device).div(size, rounding_mode="floor")

    def scatter(self, y: Tensor) -> Tensor:
        """Undo `gather`, but for the shape: ``(adapters, tokens, d)`` to ``(rows, tokens, d)``."""
        if self.places is None:
            return y
        places = self.places.to(y.device)
        return y.reshape(len(self.order), -1, y.shape[-1]).index_select(0, places)  # type: ignore[arg-type]


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

    bank: Slots
    rows: slice | Tensor
    place: slice
    length: int

    @property
    def count(self) -> int:
        """R."""
        rows = self.rows
        return rows.stop - rows.start if isinstance(rows, slice) else len(rows)

    def tensor(self, name: str) -> Tensor:
        """Return a tensor of each of the adapters, ``(R, rows, columns)``, or of all of them."""
        return self.bank.tensor(name, self.rows)

    def view(self, key: object, make: Callable[[], T]) -> T:
        """Return views of the adapters' tensors, which stay right while others come into these rows."""
        if not isinstance(self.rows, slice):
            return make()
        place, views = (key, self.rows.start, self.rows.stop), self.bank.views
        if place not in views:
            views[place] = make()
        found: T = views[place]
        return found

    def of(self, tokens: Tensor) -> Tensor:
        """Return the group's part of ``(tokens, d)`` of the batch, ``(R, n, d)``."""
        return part_of(tokens, 0, self.place).view(-1, self.length, tokens.shape[1])


class Batch(NamedTuple):
    """The tokens of a server's batch, adapter by adapter, in groups.

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

    def __init__(self, bank: Slots, tokens: int):
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

    def masked(self, x: Tensor) -> Tensor:
        """Return ``x (tokens, d)`` for `batch`: zeros for tokens without an adapter, if a term would add
        something to them."""
        if not self.bank.layout.fixed:
            return x
        return x.masked_fill((self.slots[: len(x)] == self.bank.slots).unsqueeze(1), 0)

    def batch(self, tokens: int) -> Batch:
        """Return the first tokens of the step, each a row by itself."""
        whole = slice(0, tokens)
        return Batch((Group(self.bank, self.slots[whole], whole, 1),), whole)


APART = 128
"""With as many tokens an adapter is in no group but with others that have the same number."""


def group_tokens(bank: Slots, slots: Sequence[int]) -> Batch:
    """Group the tokens of a batch by how many their adapters have, and bring these to the front of the bank.

    Padding at most doubles the work. Groups, and adapters in them, come in the order of the tokens.

    Args:
        bank: of the adapters, on a CPU.
        slots: of the adapter of each token; negative for a token that has none.
    """
    members: dict[int, list[int]] = {}
    for token, slot in enumerate(slots):
        if slot >= 0:
            members.setdefault(int(slot), []).append(token)
    by_size: dict[int, list[int]] = {}
    for slot, tokens in members.items():
        size = len(tokens)
        by_size.setdefault(size if size >= APART else 1 << (size - 1).bit_length(), []).append(slot)
    bank.bring([slot for found in by_size.values() for slot in found])
    grouped = [[members[slot] for slot in found] for found in by_size.values()]
    order, places = arrange(grouped, len(slots))
    groups, row, token = [], 0, 0
    for adapters in grouped:
        length = max(map(len, adapters))
        rows, place = slice(row, row + len(adapters)), slice(token, token + len(adapters) * length)
        groups.append(Group(bank, rows, place, length))
        row, token = rows.stop, place.stop
    start = order[0] if order else 0
    if order == list(range(start, start + len(order))):
        return Batch(tuple(groups), slice(start, start + len(order)))
    return Batch(tuple(groups), order=torch.tensor(order), places=torch.tensor(places))
