"""The tokens of a batch by the slots of their adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from bishare_dsl.serve.bank import Bank
from bishare_dsl.serve.terms import Place


@dataclass(frozen=True)
class Group:
    """Adapters that have about as many tokens each: ``R`` rows of ``n`` tokens, the shorter ones padded.

    Attributes:
        bank: that has them.
        slots: of the rows: a slice where they lie side by side in the bank, so that nothing is copied.
        tokens: ``(R * n,)``, which token stands where; None where they are the whole batch, in order.
        kept: the places in ``tokens`` that are not padding; None where there is none.
        length: ``n``.
    """

    bank: Bank
    slots: slice | Tensor
    tokens: Tensor | None
    kept: Tensor | None
    length: int
    _views: dict[Place, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def tensor(self, place: Place) -> Tensor:
        """Return a tensor of each of the adapters, ``(R, rows, columns)``."""
        if place in self._views:
            return self._views[place]
        whole = self.bank.view(place)
        if not isinstance(self.slots, slice):
            if not place.common:
                return whole.index_select(0, self.slots)
            shared: Tensor = whole[:1].expand(len(self.slots), -1, -1)
            return shared
        # It stays where it is, so that it need not be looked up again.
        self._views[place] = whole[self.slots]
        return self._views[place]

    def rows(self, x: Tensor) -> Tensor:
        """Return the group's tokens of ``x (tokens, d)``, ``(R, n, d)``."""
        found = x if self.tokens is None else x.index_select(0, self.tokens)
        return found.view(-1, self.length, x.shape[1])

    def add(self, output: Tensor, delta: Tensor) -> None:
        """Add ``delta (R, n, d)`` to the group's tokens of ``output (tokens, d)``, in place."""
        delta = delta.flatten(0, 1)
        if self.tokens is None:
            output.add_(delta)
        elif self.kept is None:
            output.index_add_(0, self.tokens, delta)
        else:
            output.index_add_(0, self.tokens[self.kept], delta[self.kept])


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
        """Write the slot of each token; negative for one that has no adapter."""
        none = self.bank.slots
        found = np.full(self._tokens, none, np.int32)
        given = np.asarray(slots, np.int32)
        found[: len(given)] = np.where(given < 0, none, given)
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

    def groups(self, tokens: int) -> tuple[Group]:
        """Return the first tokens of the step, each a row by itself."""
        return (Group(self.bank, self.slots[:tokens], None, None, 1),)


def group_tokens(bank: Bank, slots: Sequence[int]) -> tuple[Group, ...]:
    """Group the tokens of a batch by how many their adapters have.

    Adapters of one group have within a factor of two as many tokens, so that padding at most doubles the
    work; a batch of n tokens has at most log n groups.

    Args:
        bank: of the adapters.
        slots: of the adapter of each token; negative for a token that has none.
    """
    device = bank.memory.device
    of_token = np.asarray(slots)
    tokens = np.flatnonzero(of_token >= 0)
    tokens = tokens[np.argsort(of_token[tokens], kind="stable")]
    used, starts, counts = np.unique(of_token[tokens], return_index=True, return_counts=True)
    groups = []
    sizes = np.ceil(np.log2(np.maximum(counts, 1)))
    for size in np.unique(sizes):
        chosen = np.flatnonzero(sizes == size)
        length = int(counts[chosen].max())
        low, high = int(used[chosen[0]]), int(used[chosen[-1]]) + 1
        # Idle rows in between cost less than a copy of the others' tensors.
        side_by_side = (high - low - len(chosen)) * length <= len(chosen)
        rows = used[chosen] - low if side_by_side else np.arange(len(chosen))
        placed = np.full((high - low if side_by_side else len(chosen), length), -1)
        for row, start, count in zip(rows, starts[chosen], counts[chosen], strict=True):
            placed[row, :count] = tokens[start : start + count]
        flat = placed.ravel()
        kept = np.flatnonzero(flat >= 0)
        whole = len(flat) == len(of_token) and bool((flat == np.arange(len(flat))).all())
        groups.append(
            Group(
                bank,
                slots=slice(low, high)
                if side_by_side
                else torch.from_numpy(used[chosen]).to(device),
                tokens=None if whole else torch.from_numpy(np.maximum(flat, 0)).to(device),
                kept=None if len(kept) == len(flat) else torch.from_numpy(kept).to(device),
                length=length,
            )
        )
    return tuple(groups)
