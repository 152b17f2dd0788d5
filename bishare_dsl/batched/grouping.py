"""Group the tokens of a server's batch by adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from bishare_dsl.batched.bank import Slots
from bishare_dsl.rewrite.grouped_rows import arrange

T = TypeVar("T")


def part_of(tensor: Tensor, axis: int, part: slice) -> Tensor:
    """Slice an axis, or return the tensor itself if the slice is complete, because views take time."""
    count: int = part.stop - part.start
    return tensor if tensor.shape[axis] == count else tensor.narrow(axis, part.start, count)


@dataclass(frozen=True)
class Group:
    """Adapters with similar numbers of tokens: ``R`` adapters with ``n`` tokens each after padding.

    Attributes:
        bank: contains the adapters.
        rows: the adapters' rows in the bank; a slice if they are adjacent, which avoids a copy.
        place: the slice of the group's tokens in the sorted tokens of the `Batch`.
        length: ``n``.
    """

    bank: Slots
    rows: slice | Tensor
    place: slice
    length: int

    @property
    def count(self) -> int:
        """The number ``R`` of adapters."""
        rows = self.rows
        return rows.stop - rows.start if isinstance(rows, slice) else len(rows)

    def tensor(self, name: str) -> Tensor:
        """Return a tensor of the group's adapters, ``(R, rows, columns)``, or the tensor common to all."""
        return self.bank.tensor(name, self.rows)

    def cached(self, key: object, make: Callable[[], T], *, computed: bool) -> T:
        """Return what is made of the adapters' tensors, cached.

        Views of the tensors stay valid when these change. What is ``computed`` from them is dropped then.
        """
        cache = self.bank.copies if computed else self.bank.views
        if not isinstance(self.rows, slice):
            return make()
        place = key, self.rows.start, self.rows.stop
        if place not in cache:
            cache[place] = make()
        cached: T = cache[place]
        return cached

    def of(self, tokens: Tensor) -> Tensor:
        """Return the group's part ``(R, n, d)`` of the batch's ``(tokens, d)``."""
        return part_of(tokens, 0, self.place).view(-1, self.length, tokens.shape[1])


class Batch(NamedTuple):
    """The tokens of a server's batch, grouped and sorted by adapter.

    Attributes:
        groups: the groups in order.
        tokens: the slice of tokens with an adapter, if they are already sorted.
        order: otherwise, the token at each position.
        places: the position of each token; tokens without an adapter get the position after the last.
        rows: the row of each token in the bank.
    """

    groups: tuple[Group, ...] = ()
    tokens: slice = slice(0)
    order: Tensor | None = None
    places: Tensor | None = None
    rows: Tensor = torch.empty(0, dtype=torch.long)

    def read(self, x: Tensor) -> Tensor:
        """Return ``x (tokens, d)`` sorted by adapter."""
        return part_of(x, 0, self.tokens) if self.order is None else x.index_select(0, self.order)

    def room(self, output: Tensor) -> Tensor:
        """Return a sorted buffer for updates of ``output (tokens, d)``: the output itself if possible."""
        if self.order is None:
            return part_of(output, 0, self.tokens)
        return output.new_zeros(len(self.order) + 1, output.shape[1])

    def add(self, output: Tensor, room: Tensor) -> None:
        """Add the updates in the buffer from `room` to an output."""
        if self.places is not None:
            output[: len(self.places)] += room.index_select(0, self.places)


class Step:
    """The inputs of a server step, in a buffer of fixed size that is written before the step.

    All shapes depend only on the server's settings, so a recorded step (a CUDA graph) is correct for any
    batch written later.

    Args:
        bank: of the adapters.
        tokens: the maximum number of tokens in a step.

    Attributes:
        slots: the row of each token in the bank, ``(tokens,)``; the row of zeros for tokens without an
            adapter.
    """

    def __init__(self, bank: Slots, tokens: int):
        self.bank = bank
        self._tokens = tokens
        self.slots = torch.zeros(tokens, dtype=torch.int32, device=bank.memory.device)
        self.write([])

    def write(self, slots: Sequence[int]) -> None:
        """Write the slot of each token; -1 for tokens without an adapter."""
        none = self.bank.slots
        rows = np.full(self._tokens, none, np.int32)
        # The last row is for tokens without an adapter.
        rows[: len(slots)] = self.bank.row[np.asarray(slots, np.int32)]
        host = torch.from_numpy(rows)
        if self.slots.is_cuda:
            host = host.pin_memory()  # Pinned, so that the copy is asynchronous.
        self.slots.copy_(host, non_blocking=True)

    def masked(self, x: Tensor) -> Tensor:
        """Zero ``x (tokens, d)`` for tokens without an adapter, if a term would add to them."""
        if not self.bank.layout.fixed:
            return x
        return x.masked_fill((self.slots[: len(x)] == self.bank.slots).unsqueeze(1), 0)

    def batch(self, tokens: int) -> Batch:
        """Return the first tokens of the step as a batch, with a separate row for each."""
        whole = slice(0, tokens)
        rows = self.slots[whole]
        return Batch((Group(self.bank, rows, whole, 1),), whole, rows=rows)


APART = 128
"""Adapters with this many tokens are grouped only with others of equal size."""


def group_tokens(bank: Slots, slots: Sequence[int]) -> Batch:
    """Group a batch's tokens by the number of tokens of their adapters, and move these to the bank's start.

    Padding at most doubles the work. Groups, and adapters within them, are in the order of the tokens.

    Args:
        bank: of the adapters, on a CPU.
        slots: the slot of each token's adapter; negative for tokens without an adapter.
    """
    members: dict[int, list[int]] = {}
    for token, slot in enumerate(slots):
        if slot >= 0:
            members.setdefault(int(slot), []).append(token)
    by_size: dict[int, list[int]] = {}
    for slot, tokens in members.items():
        size = len(tokens)
        by_size.setdefault(size if size >= APART else 1 << (size - 1).bit_length(), []).append(slot)
    bank.move_to_front([slot for group in by_size.values() for slot in group])
    owners = torch.from_numpy(bank.row[np.asarray(slots, int)])  # The last one is for no adapter.
    grouped = [[members[slot] for slot in group] for group in by_size.values()]
    order, places = arrange(grouped, len(slots))
    groups = []
    ranges: set[tuple[int, int]] = set()
    row = 0
    token = 0
    for adapters in grouped:
        length = max(map(len, adapters))
        rows = slice(row, row + len(adapters))
        place = slice(token, token + len(adapters) * length)
        groups.append(Group(bank, rows, place, length))
        ranges.add((row, rows.stop))
        row = rows.stop
        token = place.stop
    bank.keep_copies(ranges)
    start = order[0] if order else 0
    if order == list(range(start, start + len(order))):
        return Batch(tuple(groups), slice(start, start + len(order)), rows=owners)
    return Batch(tuple(groups), order=torch.tensor(order), places=torch.tensor(places), rows=owners)
