"""The computation of `layer.LayerTerms` in two Triton kernels for each layer, for a GPU.

The first kernel multiplies tokens by every A of the layer; the second multiplies the result by every B
and adds it to the output. Each program processes a tile of tokens of one adapter. The grid, and all
arguments outside buffers, depend only on the number of tokens and on the server's settings.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from bishare_dsl.batched.bank import Slots
from bishare_dsl.batched.grouping import TILE, Group, Step
from bishare_dsl.batched.layer import LayerTerms
from bishare_dsl.transforms.factor import Dense, Factor, Gained, Kron

COLUMNS = 64
"""Number of input or output features that a program processes at a time."""


def sizes(dtype: torch.dtype) -> dict[str, int]:
    """Return the tile sizes and warps of a program, which spill no registers on sm_80 to sm_120.

    `tests/serve_kernels` compiles them.
    """
    rows, warps = (16, 8) if dtype == torch.float32 else (32, 4)
    return {"M": TILE, "R": rows, "C": COLUMNS, "num_warps": warps}


class Stored(NamedTuple):
    """Location of a tensor of each slot in a bank: offset of the first, stride to the next, shape."""

    at: int
    step: int
    rows: int
    columns: int
    stride: int


NOWHERE = Stored(-1, 0, 1, 1, 1)


class KernelTerms:
    """The terms of a layer's sites, encoded as integers for the kernels.

    Args:
        bank: the adapters' tensors.
        terms: the layer's terms.

    Raises:
        ValueError: this process has non-contiguous inputs or outputs, or a factor is neither a slice of
            the bank nor a Kronecker product of slices.
    """

    def __init__(self, bank: Slots, terms: LayerTerms):
        self._bank = bank
        inputs = 0 if terms.inputs is None else _first(terms.inputs)
        pairs = terms.pairs(Group(bank, slice(0, 2), slice(0, 2), 1))
        downs, self._width = list[list[int]](), 0
        columns: list[int] = []
        for i in terms.downs:
            columns.append(self._width)
            fields, rows = self._factor(pairs[i][0])
            downs.append([*fields, self._width, terms.width, inputs])
            self._width += rows
        ups: list[list[int]] = []
        blocks: list[list[int]] = []
        scales: list[float] = []
        for (part, uses), indices in zip(terms.sites, terms.ups, strict=True):
            start, stop = part.place.start, part.place.stop
            first = 0 if part.of_site is None else _first(part.of_site)
            blocks += [
                [at, min(COLUMNS, stop - at), first + at - start, len(ups), len(ups) + len(indices)]
                for at in range(start, stop, COLUMNS)
            ]
            for (number, _, _, scale), i in zip(uses, indices, strict=True):
                b = pairs[i][1]
                gains = [b.by_row, b.by_output] if isinstance(b, Gained) else [None, None]
                fields, _ = self._factor(b.factor if isinstance(b, Gained) else b)
                places = [NOWHERE if gain is None else self._stored(gain) for gain in gains]
                ups.append([*fields, columns[number], *(n for p in places for n in (p.at, p.step))])
                scales.append(scale)
        self._downs, self._ups, self._blocks = (self._table(rows) for rows in (downs, ups, blocks))
        self._scales = torch.tensor(scales, device=bank.memory.device)
        self._sizes = sizes(bank.memory.dtype)

    def add(self, output: Tensor, x: Tensor, step: Step) -> None:
        """Add the adapters' updates for ``x (tokens, d_in)`` to ``output (tokens, d_out)``, in place."""
        tiles = step.tiles_of(len(x))
        z = x.new_empty(len(x), self._width, dtype=torch.float32)
        batch = step.order, step.tiles, self._bank.memory
        _down[tiles, len(self._downs)](
            *batch, x, x.stride(0), x.shape[1], z, self._width, self._downs, **self._sizes
        )
        written, tables = (output, output.stride(0)), (self._ups, self._scales, self._blocks)
        _up[tiles, len(self._blocks)](*batch, *written, z, self._width, *tables, **self._sizes)

    def _table(self, rows: list[list[int]]) -> Tensor:
        return torch.tensor(rows, dtype=torch.int64, device=self._bank.memory.device)

    def _stored(self, tensor: Tensor) -> Stored:
        """Return the location of a tensor ``(slots, rows, columns)`` in the bank."""
        memory = self._bank.memory
        if tensor.untyped_storage().data_ptr() != memory.untyped_storage().data_ptr():
            raise ValueError("a factor is made of the tensors, and no part of them")
        _, rows, columns = tensor.shape
        step, stride, next_ = tensor.stride()
        if next_ != 1 and columns > 1:
            raise ValueError("a factor's columns do not lie side by side")
        return Stored(int(tensor.storage_offset()), step, rows, columns, stride)

    def _factor(self, factor: Factor) -> tuple[list[int], int]:
        """Encode a factor as integers, and return its rows; only Kronecker factors have several tiles."""
        if isinstance(factor, Kron):
            stored, kernel = self._stored(factor.shared), self._stored(factor.kernel)
            if kernel.stride != kernel.columns and kernel.rows > 1:
                raise ValueError("a kernel's rows do not lie side by side")
            blocks, size = kernel.rows, stored.columns
        elif isinstance(factor, Dense):
            stored, kernel = self._stored(factor.tensor), NOWHERE
            blocks, size = 1, stored.columns
        else:
            raise ValueError("a factor is not in the bank")  # noqa: TRY004 - of a package
        # With ``rowwise``, each row of the kernel has one row of the shared factor.
        rowwise = isinstance(factor, Kron) and factor.rowwise
        rows, skip = (1, stored.stride) if rowwise else (stored.rows, 0)
        read = [stored.at, stored.step, stored.stride, rows, skip, size]
        return [*read, kernel.at, kernel.step, blocks, kernel.columns], blocks * rows


def _first(places: Tensor) -> int:
    """Return the first of consecutive indices."""
    first = int(places[0])
    if not torch.equal(places.cpu(), torch.arange(first, first + len(places))):
        raise ValueError("the features of this process do not lie side by side")
    return first


@triton.jit
def _read_tile(order, tiles, M: tl.constexpr):
    """Read the slot of a program's tile, its tokens, and a mask of valid tokens."""
    tile = tiles + 3 * tl.program_id(0)
    places = tl.load(tile + 1) + tl.arange(0, M)
    there = places < tl.load(tile + 2)
    tokens = tl.load(order + places, mask=there, other=0).to(tl.int64)
    return tl.load(tile).to(tl.int64), tokens, there


@triton.jit
def _down(
    order, tiles, memory, x, x_step, x_width, z, z_step, table,
    M: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Multiply a tile of tokens by one A, writing to its columns of ``z (tokens, rows)``, in float32."""
    slot, tokens, there = _read_tile(order, tiles, M)
    if slot >= 0:
        fields = table + 13 * tl.program_id(1)
        stored = memory + tl.load(fields) + slot * tl.load(fields + 1)
        columns, rows, skip, size = (
            tl.load(fields + 2), tl.load(fields + 3), tl.load(fields + 4), tl.load(fields + 5),
        )  # fmt: skip
        kernel_at, kernel_step = tl.load(fields + 6), tl.load(fields + 7)
        blocks, count = tl.load(fields + 8), tl.load(fields + 9)
        column, side, first = tl.load(fields + 10), tl.load(fields + 11), tl.load(fields + 12)
        for block in range(blocks):
            kernel = memory + tl.maximum(kernel_at, 0) + slot * kernel_step + block * count
            for r in range(0, rows, R):
                row = r + tl.arange(0, R)
                total = tl.zeros((M, R), tl.float32)
                for c in range(0, size, C):
                    inner = c + tl.arange(0, C)
                    mixed = tl.zeros((M, C), tl.float32)
                    for j in range(count):
                        feature = j * size + inner
                        local = feature - first
                        real = (inner < size) & (feature < side) & (local >= 0) & (local < x_width)
                        at = x + tokens[:, None] * x_step + local[None, :]
                        part = tl.load(at, mask=there[:, None] & real[None, :], other=0.0)
                        weight = tl.where(kernel_at < 0, 1.0, tl.load(kernel + j).to(tl.float32))
                        mixed += weight * part.to(tl.float32)
                    at = stored + block * skip + row[None, :] * columns + inner[:, None]
                    a = tl.load(at, mask=(row < rows)[None, :] & (inner < size)[:, None], other=0.0)
                    total = tl.dot(mixed.to(a.dtype), a, total, input_precision="ieee")
                place = z + tokens[:, None] * z_step + column + block * rows + row[None, :]
                tl.store(place, total, mask=there[:, None] & (row < rows)[None, :])


@triton.jit
def _up(
    order, tiles, memory, y, y_step, z, z_step, table, scales, parts,
    M: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Multiply ``z`` by all terms of a site, and add the result to some columns of a tile's output."""
    slot, tokens, there = _read_tile(order, tiles, M)
    if slot >= 0:
        part = parts + 5 * tl.program_id(1)
        out = tl.load(part) + tl.arange(0, C)
        count_out = tl.load(part + 1)
        real = tl.arange(0, C) < count_out
        feature = tl.load(part + 2) + tl.arange(0, C)
        total = tl.zeros((M, C), tl.float32)
        for term in range(tl.load(part + 3), tl.load(part + 4)):
            fields = table + 15 * term
            stored = memory + tl.load(fields) + slot * tl.load(fields + 1)
            columns, rows, skip, size = (
                tl.load(fields + 2), tl.load(fields + 3), tl.load(fields + 4), tl.load(fields + 5),
            )  # fmt: skip
            kernel_at, kernel_step = tl.load(fields + 6), tl.load(fields + 7)
            blocks, count = tl.load(fields + 8), tl.load(fields + 9)
            column = tl.load(fields + 10)
            rank_at, rank_step = tl.load(fields + 11), tl.load(fields + 12)
            out_at, out_step = tl.load(fields + 13), tl.load(fields + 14)
            added = tl.zeros((M, C), tl.float32)
            for block in range(blocks):
                kernel = memory + kernel_at + slot * kernel_step + block * count
                weighed = tl.arange(0, C) < tl.where(kernel_at < 0, 0, count_out)
                weight = tl.load(kernel + feature // size, mask=weighed, other=1.0)
                for r in range(0, rows, R):
                    row = r + tl.arange(0, R)
                    at = z + tokens[:, None] * z_step + (column + block * rows + row)[None, :]
                    low = tl.load(at, mask=there[:, None] & (row < rows)[None, :], other=0.0)
                    gain = memory + rank_at + slot * rank_step + block * rows + row
                    gained = row < tl.where(rank_at < 0, 0, rows)
                    low *= tl.load(gain, mask=gained, other=1.0).to(tl.float32)[None, :]
                    at = stored + block * skip + row[:, None] * columns + (feature % size)[None, :]
                    b = tl.load(at, mask=(row < rows)[:, None] & real[None, :], other=0.0)
                    b = (b.to(tl.float32) * weight.to(tl.float32)[None, :]).to(b.dtype)
                    added = tl.dot(low.to(b.dtype), b, added, input_precision="ieee")
            gain = memory + out_at + slot * out_step + feature
            gained = tl.arange(0, C) < tl.where(out_at < 0, 0, count_out)
            by_gain = tl.load(gain, mask=gained, other=1.0).to(tl.float32)
            total += added * by_gain[None, :] * tl.load(scales + term)
        place = y + tokens[:, None] * y_step + out[None, :]
        mask = there[:, None] & real[None, :]
        before = tl.load(place, mask=mask, other=0.0)
        tl.store(place, (before.to(tl.float32) + total).to(before.dtype), mask=mask)
