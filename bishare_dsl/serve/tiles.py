"""Kronecker factors for few tokens of each adapter: nothing of a module's width is made but its output.

For ``A = K (x) A_s`` with ``K (b, k)`` and ``A_s (a, s)``, the input is read as k tiles ``x_j`` of s
features: ``z_i = A_s sum_j K_ij x_j`` are the a rows of block i. For B it is the other way round: tile j of
the output is ``sum_i K_ij u_i`` with ``u_i = B_s^T z_i``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from bishare_dsl.serve.batch import Group
from bishare_dsl.serve.terms import Factor, Place, ServedTerm, side_by_side


class _Pool(NamedTuple):
    """Blocks ``start`` to ``stop`` of a product with kernels, which are multiplied by one A.

    ``b`` is what all of them are multiplied by then, where that is one tensor too.
    """

    a: Place
    start: int
    stop: int
    parts: list[tuple[Factor, int, int]]
    b: Place | None


class Tiles:
    """The terms of a layer whose A is a Kronecker product. ``z`` stands in blocks, ``(R, b, n, a)``."""

    def __init__(self, terms: Sequence[ServedTerm]):
        followers: dict[Factor, list[ServedTerm]] = {}
        for term in terms:
            followers.setdefault(term.a, []).append(term)
        self._products: list[tuple[Place, int, list[_Pool]]] = []
        kernels = [(factor.kernel, factor) for factor in followers if factor.kernel is not None]
        for size, found in groupby(sorted(kernels, key=_size), key=_size):
            for kernel, parts in side_by_side(found):
                pools = []
                for a, those in groupby(parts, key=lambda part: part[0].stored):
                    same = [*those]
                    b = _only([term for factor, _, _ in same for term in followers[factor]])
                    pools.append(_Pool(a, same[0][1], same[-1][2], same, b))
                self._products.append((kernel, size, pools))

    def down(self, group: Group, x: Tensor) -> tuple[dict[Factor, Tensor], dict[Factor, Tensor]]:
        """Multiply ``x (R, n, d_in)`` by each A, and further by a B of which it is known that it is next.

        Returns:
            For each A its ``z (R, b, n, a)``, and its ``u (R, b, n s)`` where it is known.
        """
        z: dict[Factor, Tensor] = {}
        u: dict[Factor, Tensor] = {}
        tiles: dict[int, Tensor] = {}
        for kernel, size, pools in self._products:
            if size not in tiles:
                tiles[size] = _in_tiles(x, size)
            inner = torch.bmm(group.tensor(kernel), tiles[size])  # (R, b, n s)
            for pool in pools:
                blocks = inner[:, pool.start : pool.stop].unflatten(2, (-1, size)).flatten(1, 2)
                product = torch.bmm(blocks, group.tensor(pool.a).mT)
                apart = product.unflatten(1, (-1, x.shape[1]))
                of_pool = None if pool.b is None else lift(group, pool.b, apart)
                for factor, start, stop in pool.parts:
                    rows = slice(start - pool.start, stop - pool.start)
                    z[factor] = apart[:, rows]
                    if of_pool is not None:
                        u[factor] = of_pool[:, rows]
        return z, u


def lift(group: Group, b: Place, z: Tensor) -> Tensor:
    """Multiply ``z (R, b, n, a)`` by the stored ``B (R, a, s)``: ``u (R, b, n s)``."""
    product: Tensor = torch.bmm(z.flatten(1, 2), group.tensor(b))
    return product.view(*z.shape[:2], -1)


def in_blocks(z: Tensor, factor: Factor) -> Tensor:
    """Return ``z (R, n, rows)`` in the blocks of a B, ``(R, b, n, a)``; in such it may be already."""
    if z.dim() == 4 and z.shape[1::2] == (factor.rows // factor.stored.rows, factor.stored.rows):
        return z
    blocks: Tensor = flat(z).unflatten(2, (-1, factor.stored.rows))
    return blocks.transpose(1, 2)


def flat(z: Tensor) -> Tensor:
    """Return ``z (R, b, n, a)`` as ``(R, n, rows)``; it may be so already."""
    return z.transpose(1, 2).flatten(2) if z.dim() == 4 else z


def tiles_in(total: Tensor, size: int) -> Tensor | None:
    """Return ``total (R, n, side)`` as ``(R, k, n s)`` where it lies so, for one token of each adapter."""
    if total.shape[1] > 1 or total.shape[2] % size:
        return None
    tiles: Tensor = total.squeeze(1).unflatten(1, (-1, size))
    return tiles


def out_of_tiles(y: Tensor, size: int, side: int) -> Tensor:
    """Return ``y (R, k, n s)`` as ``(R, n, side)``."""
    tiles: Tensor = y.unflatten(2, (-1, size))
    return tiles.transpose(1, 2).flatten(2)[..., :side]


def _in_tiles(x: Tensor, size: int) -> Tensor:
    """Return ``x (R, n, d)`` as ``(R, k, n s)``."""
    if spare := -x.shape[2] % size:
        x = pad(x, (0, spare))
    tiles: Tensor = x.unflatten(2, (-1, size))
    return tiles.transpose(1, 2).flatten(2)


def _size(found: tuple[Place, Factor]) -> int:
    return found[1].stored.columns


def _only(terms: Sequence[ServedTerm]) -> Place | None:
    """Return the B that all terms of a pool have in common, if their z goes to it as it is."""
    stored = {term.b.stored for term in terms}
    plain = all(
        term.b.tiled
        and term.gain_rank is None
        and (term.a.rows, term.a.stored.rows) == (term.b.rows, term.b.stored.rows)
        for term in terms
    )
    return stored.pop() if plain and len(stored) == 1 else None
