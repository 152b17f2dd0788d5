"""Factors: the result of a transform for one role at one site, and products with it.

An adapter's update is ``dW = B^T A``. `Dense` is a plain tensor, `Kron` a Kronecker product, and `Gained`
a factor between two diagonals. Each can also represent the factors of many adapters, sites or experts.
Its tensors, and the ``x``, ``y`` and ``z`` of its products, then have a leading axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

DECODE_TOKENS = 16
"""Up to this number of tokens of an adapter, launching products takes longer than computing them."""


class Factor(Protocol):
    """An effective factor ``(..., rows, side)``, where side is the input width for A, the output width for B.

    Implementations are `NamedTuple`s of tensors, other factors and numbers, so that they can be values in
    a graph, and batched over many adapters.
    """

    def down(self, x: Tensor) -> Tensor:
        """Compute ``x A^T``: ``(..., n, side)`` to ``(..., n, rows)``."""
        ...

    def add_up(self, y: Tensor, z: Tensor, scale: float = 1.0) -> Tensor:
        """Add ``scale * z B`` to ``y (..., n, side)`` in place, and return it; z is ``(..., n, rows)``."""
        ...

    def dense(self) -> Tensor:
        """Return the factor as one tensor, ``(..., rows, side)``."""
        ...


class Dense(NamedTuple):
    """A tensor used directly as the factor."""

    tensor: Tensor

    def down(self, x: Tensor) -> Tensor:
        a = self.tensor
        return F.linear(x, a) if a.dim() == 2 else torch.bmm(x, a.mT)

    def add_up(self, y: Tensor, z: Tensor, scale: float = 1.0) -> Tensor:
        return add_product(y, z, self.tensor, scale)

    def dense(self) -> Tensor:
        return self.tensor


class Kron(NamedTuple):
    """The leading ``side`` columns of ``kernel (..., b, k) (x) shared (..., a, s)``, with ``b a`` rows.

    Row ``i a + j`` is ``kernel[i] (x) shared[j]``; if ``rowwise``, row i is ``kernel[i] (x) shared[i]``.
    For few tokens, `down` splits the input into k tiles ``x_j`` of s features: the a rows of block i are
    ``shared sum_j K_ij x_j``. `add_up` is the transpose: tile j gets ``sum_i K_ij z_i shared``. No matrix
    as wide as the site is created.
    """

    kernel: Tensor
    shared: Tensor
    side: int
    rowwise: bool = False

    def down(self, x: Tensor) -> Tensor:
        kernel, shared, side, rowwise = self
        tokens = x.shape[-2]
        if rowwise or tokens > DECODE_TOKENS or (kernel.dim() == 2 and tokens > 1):
            return Dense(self.dense()).down(x)
        size = shared.shape[-1]
        if side % size:
            x = F.pad(x, (0, -side % size))
        if kernel.dim() == 2:
            return F.linear(kernel.mm(x.view(-1, size)), shared).view(1, -1)
        adapters = len(kernel)
        rows = shared.shape[-2]
        tiles = x.reshape(adapters, tokens, -1, size).transpose(1, 2)
        blocks = torch.bmm(kernel, tiles.reshape(adapters, -1, tokens * size))
        z = torch.bmm(blocks.view(adapters, -1, size), shared.mT)  # (adapters, b n, a)
        if tokens > 1:
            z = z.view(adapters, -1, tokens, rows).transpose(1, 2)
        return z.reshape(adapters, tokens, -1)

    def add_up(self, y: Tensor, z: Tensor, scale: float = 1.0) -> Tensor:
        kernel, shared, side, rowwise = self
        tokens = z.shape[-2]
        size = shared.shape[-1]
        if rowwise or tokens > DECODE_TOKENS or (kernel.dim() == 2 and tokens > 1) or side % size:
            return add_product(y, z, self.dense(), scale)
        if kernel.dim() == 2:
            blocks = z.view(kernel.size(0), -1).mm(shared)
            y.view(-1, size).addmm_(kernel.t(), blocks, alpha=scale)
            return y
        adapters = len(kernel)
        rows = shared.shape[-2]
        if tokens > 1:
            z = z.view(adapters, tokens, -1, rows).transpose(1, 2)
        blocks = torch.bmm(z.reshape(adapters, -1, rows), shared)
        if tokens == 1:
            add_product(y.view(adapters, -1, size), kernel.mT, blocks, scale)
            return y
        tiles = torch.bmm(kernel.mT, blocks.view(adapters, -1, tokens * size))
        tiles = tiles.view(adapters, -1, tokens, size).transpose(1, 2)
        y.view(adapters, tokens, -1, size).add_(tiles, alpha=scale)
        return y

    def dense(self) -> Tensor:
        kernel, shared, side, rowwise = self
        if rowwise:
            whole = (kernel.unsqueeze(-1) * shared.unsqueeze(-2)).flatten(-2)
        else:  # Without `torch.kron` and its branch on dimensions, which a proxy does not have.
            tiles = kernel[..., :, None, :, None] * shared[..., None, :, None, :]
            whole = tiles.flatten(-2).flatten(-3, -2)
        # Not compared first: `torch.jit.trace` cannot read a shape under `vmap`. A whole slice is the tensor.
        return whole[..., :side]


class Gained(NamedTuple):
    """A factor B between two diagonals: ``by_row (..., 1, rows)`` and ``by_output (..., 1, side)``."""

    factor: Factor
    by_row: Tensor | None
    by_output: Tensor | None

    def down(self, x: Tensor) -> Tensor:
        return Dense(self.dense()).down(x)

    def add_up(self, y: Tensor, z: Tensor, scale: float = 1.0) -> Tensor:
        if self.by_row is not None:
            z = z * self.by_row
        if self.by_output is None:
            return self.factor.add_up(y, z, scale)
        return y.addcmul_(z @ self.factor.dense(), self.by_output, value=scale)

    def dense(self) -> Tensor:
        b = self.factor.dense()
        if self.by_row is not None:
            b = b * self.by_row.mT
        return b if self.by_output is None else b * self.by_output


class Mixed(NamedTuple):
    """A factor multiplied from the left by a small matrix, ``left (..., rows, inner rows)``."""

    left: Tensor
    factor: Factor

    def down(self, x: Tensor) -> Tensor:
        return self.factor.down(x) @ self.left.mT

    def add_up(self, y: Tensor, z: Tensor, scale: float = 1.0) -> Tensor:
        return self.factor.add_up(y, z @ self.left, scale)

    def dense(self) -> Tensor:
        return self.left @ self.factor.dense()


def as_factor(result: Tensor | Factor) -> Factor:
    """Convert a transform's result to a factor: plain tensors become `Dense`."""
    return result if isinstance(result, tuple) else Dense(result)  # type: ignore[arg-type]


T = TypeVar("T")


def map_tensors(factor: T, change: Callable[[Any], Any], kind: type[Any] = Tensor) -> T:
    """Return a factor with its tensors changed (or its values of another ``kind``, such as proxies)."""
    return type(factor)(
        *(
            map_tensors(part, change, kind)
            if isinstance(part, tuple)
            else change(part)
            if isinstance(part, kind)
            else part
            for part in factor  # type: ignore[attr-defined]
        )
    )


def tensors_of(factor: Factor) -> list[Tensor]:
    """List the tensors of a factor."""
    tensors: list[Tensor] = []
    map_tensors(factor, tensors.append)
    return tensors


def add_product(total: Tensor, left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
    """Add ``scale * left (..., i, j) @ right (..., j, k)`` to a total, in place.

    Vector products are used when torch's would take three times as long. For many adapters torch loops
    over products of fewer than 400 multiplications, and over products into a part of an output.
    """
    if total.dim() == 2:
        return total.addmm_(left, right, alpha=scale)
    rows = left.shape[1]
    count = left.shape[2]
    columns = right.shape[2]
    if count == 1:
        return total.addcmul_(left, right, value=scale)
    whole = total.is_contiguous()
    if rows * count * columns < 400 or (count < 4 and not whole):
        for column, row in zip(left.split(1, 2), right.split(1, 1), strict=True):
            total.addcmul_(column, row, value=scale)
        return total
    if whole or len(total) <= rows:
        return total.baddbmm_(left, right, alpha=scale)
    return total.add_(torch.bmm(left, right), alpha=scale)
