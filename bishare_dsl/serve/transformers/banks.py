"""The memory of many adapters of one plan: each is a row of bytes, and a tensor of the plan a window of rows.

So an adapter that waits costs the bytes of its tensors and no Python object for each. Where it is active,
its parameters are views of its row: there is one copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from bishare_dsl.plan import Plan

Kinds = dict[str, tuple[torch.dtype, torch.device]]
"""The dtype of each tensor of a plan, by its name, and where it is."""

_ALIGNED = 64
"""Bytes: torch aligns its tensors so, and kernels may give other last bits where they are not."""

_SLACK = 128
"""A bank grows by one row for each so many that it has."""


def kinds_of(tensors: Mapping[str, Tensor]) -> Kinds:
    """Return the dtype and the device of tensors, by their names."""
    return {name: (tensor.dtype, tensor.device) for name, tensor in tensors.items()}


Chunk = dict[torch.device, Tensor]
"""Rows that were allocated together: a tensor of bytes for each device, ``(rows, bytes)``."""


class Slot(NamedTuple):
    """A row of a bank."""

    bank: Bank
    chunk: Chunk
    row: int

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of an adapter by their names, which are views of its row."""
        return self.bank.views(self.chunk, self.row)


class Bank:
    """The memory of adapters of one plan whose tensors have the same types and devices."""

    def __init__(self, plan: Plan, kinds: Kinds) -> None:
        self.plan, self.kinds = plan, kinds
        self._places: dict[str, int] = {}
        self._widths: dict[torch.device, int] = {}
        # The large ones first, so that only they are aligned at the cost of bytes that are felt.
        for tensor in sorted(plan.tensors, key=lambda t: t.size, reverse=True):
            dtype, device = kinds[tensor.name]
            size = tensor.size * dtype.itemsize
            start = _up(self._widths.get(device, 0), _ALIGNED if size >= _ALIGNED else 16)
            self._places[tensor.name], self._widths[device] = start, start + size
        self._widths = {device: _up(width, _ALIGNED) for device, width in self._widths.items()}
        self._chunks: list[Chunk] = []
        self._free: list[Slot] = []

    @property
    def nbytes(self) -> int:
        """Bytes of memory, with rows that are free."""
        return sum(b.nbytes for chunk in self._chunks for b in chunk.values())

    def take(self) -> Slot:
        """Return a row that is free, whatever it holds."""
        if not self._free:
            rows = 1 + sum(map(_rows, self._chunks)) // _SLACK
            self._chunks.append(self._allocate(rows))
            self._free = [Slot(self, self._chunks[-1], row) for row in reversed(range(rows))]
        return self._free.pop()

    def give_back(self, slot: Slot) -> None:
        """Take a row back; memory of which no row is in use is given up."""
        self._free.append(slot)
        mine = [free for free in self._free if free.chunk is slot.chunk]
        if len(mine) == _rows(slot.chunk):
            self._chunks = [chunk for chunk in self._chunks if chunk is not slot.chunk]
            self._free = [free for free in self._free if free.chunk is not slot.chunk]

    def views(self, chunk: Chunk, row: int) -> dict[str, Tensor]:
        """Return the tensors of one row of a chunk by their names."""
        rows = {device: buffer[row] for device, buffer in chunk.items()}
        return {
            name: flat.as_strided(shape, (shape[1], 1), flat.storage_offset() + start)
            for name, shape, flat, start in self._windows(rows)
        }

    def convert(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Move or convert all tensors, as `nn.Module._apply` does; slots stay what they are."""
        converted = [
            {name: fn(tensor) for name, tensor in self._stacked(chunk).items()}
            for chunk in self._chunks
        ]
        if (kinds := kinds_of(converted[0])) == self.kinds:
            return
        other = Bank(self.plan, kinds)
        for chunk, tensors in zip(self._chunks, converted, strict=True):
            made = other._allocate(_rows(chunk))
            for name, tensor in other._stacked(made).items():
                tensor.copy_(tensors[name])
            chunk.clear()  # In place: slots have it.
            chunk.update(made)
        self.kinds, self._places, self._widths = kinds, other._places, other._widths

    def _allocate(self, rows: int) -> Chunk:
        return {
            device: torch.empty((rows, width), dtype=torch.uint8, device=device)
            for device, width in self._widths.items()
        }

    def _stacked(self, chunk: Chunk) -> dict[str, Tensor]:
        """Return the tensors of all rows of a chunk, ``(rows, *shape)``, by their names."""
        return {
            name: all_.as_strided((len(all_), *shape), (all_.stride(0), shape[1], 1), start)
            for name, shape, all_, start in self._windows(chunk)
        }

    def _windows(
        self, buffers: Mapping[torch.device, Tensor]
    ) -> list[tuple[str, tuple[int, int], Tensor, int]]:
        """For each tensor its name, its shape, the buffer it is in, in its dtype, and its start there."""
        typed = {kind: buffers[kind[1]].view(kind[0]) for kind in set(self.kinds.values())}
        return [
            (
                t.name,
                t.shape,
                typed[kind := self.kinds[t.name]],
                self._places[t.name] // kind[0].itemsize,
            )
            for t in self.plan.tensors
        ]


def _rows(chunk: Chunk) -> int:
    return len(next(iter(chunk.values())))


def _up(number: int, multiple: int) -> int:
    """Round up to a multiple."""
    return -(-number // multiple) * multiple
