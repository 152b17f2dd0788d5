"""Kronecker factors for few tokens of each adapter: nothing of a module's width is made but its output.

For ``A = K (x) A_s`` with ``K (b, k)`` and ``A_s (a, s)``, the input is read as k tiles ``x_j`` of s
features: ``z_i = A_s sum_j K_ij x_j`` are the a rows of block i. For B it is the other way round: tile j of
the output is ``sum_i K_ij u_i`` with ``u_i = B_s^T z_i``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from bishare_dsl.rewrite.few import in_tiles
from bishare_dsl.serve.batch import Group, part_of
from bishare_dsl.serve.terms import Place, ServedTerm, side_by_side


class Tiles:
    """The terms of a layer whose A and B are Kronecker products with tiles of one size.

    Args:
        size: s.
        sites: the terms of each.
    """

    def __init__(self, size: int, sites: Sequence[Sequence[ServedTerm]]):
        self.size = size
        self._of_site: dict[int, slice] = {}
        self._products: list[tuple[Place, list[tuple[slice, Place, Place]]]] = []
        self._kernels: list[tuple[Place, float, slice, slice]] = []
        self._rows = self._tiles = 0
        rows: dict[tuple[Place, Place, Place], slice] = {}
        own = [[term for term in terms if size_of(term) == size] for terms in sites]
        found = dict.fromkeys(_places(term)[0] for terms in own for term in terms)
        for kernel, parts in side_by_side((places[0], places) for places in found):
            pools = []
            for (a, b), same in groupby(parts, key=lambda part: part[0][1:]):
                ends = [end for _, *both in same for end in both]
                pools.append((slice(ends[0], ends[-1]), a, b))
            self._products.append((kernel, pools))
            for places, start, stop in parts:
                rows[places] = slice(self._rows + start, self._rows + stop)
            self._rows += kernel.rows
        for number, terms in enumerate(own):
            for term in terms:
                places, kernel = _places(term)
                own_tiles = slice(self._tiles, self._tiles + kernel.columns)
                self._of_site[number] = own_tiles
                self._kernels.append((kernel, term.scale, own_tiles, rows[places]))
            if number in self._of_site:
                self._tiles = self._of_site[number].stop

    def _downs(self, group: Group) -> list[tuple[Tensor, list[tuple[slice, Tensor, Tensor]]]]:
        """Return kernels of A ``(R, b, k)``, and which of their rows have which ``A_s^T`` and ``B_s``."""
        return [
            (
                group.tensor(kernel),
                [(rows, group.tensor(a).mT, group.tensor(b)) for rows, a, b in pools],
            )
            for kernel, pools in self._products
        ]

    def _ups(self, group: Group) -> Tensor:
        """Return all kernels of B with the terms' scales, zeros between them: ``(R, tiles, rows)``."""
        found = [group.tensor(kernel).mT * scale for kernel, scale, *_ in self._kernels]
        kernels = found[0].new_zeros(len(found[0]), self._tiles, self._rows)
        for kernel, (_, _, tiles, rows) in zip(found, self._kernels, strict=True):
            kernels[:, tiles, rows] = kernel
        return kernels

    def lift(self, group: Group, x: Tensor) -> tuple[Tensor, Tensor]:
        """Multiply ``x (R, n, d_in)`` by each A and the B_s that is next.

        Returns:
            The kernels of B ``(R, k, rows)``, and what they multiply, ``u (R, rows, n s)``.
        """
        kernels, found = group.copy(self, lambda: self._ups(group)), []
        (count, length, _), tiles = x.shape, in_tiles(x, self.size)
        for kernel, pools in group.view(self, lambda: self._downs(group)):
            inner = torch.bmm(kernel, tiles)  # (R, b, n s)
            for rows, a, b in pools:
                blocks = part_of(inner, 1, rows)
                if length > 1:
                    blocks = blocks.view(count, -1, self.size)
                u = torch.bmm(torch.bmm(blocks, a), b)
                found.append(u if length == 1 else u.view(count, -1, length * self.size))
        return kernels, found[0] if len(found) == 1 else torch.cat(found, 1)

    def are_all(self, total: Tensor) -> bool:
        """Tell whether ``total (R, 1, d)`` is these tiles one after the other."""
        return total.shape[1:] == (1, self._tiles * self.size) and total.is_contiguous()

    def of_site(self, number: int, tiles: Tensor, side: int) -> Tensor | None:
        """Return a site's part ``(R, n, side)`` of ``tiles (R, k, n s)``; None where it has none."""
        if (own := self._of_site.get(number)) is None:
            return None
        found: Tensor = part_of(tiles, 1, own).unflatten(2, (-1, self.size))
        return found.transpose(1, 2).flatten(2)[..., :side]


def size_of(term: ServedTerm) -> int:
    """Return the size of the tiles that a term is made by; 0 where it is not."""
    a, b = term.a, term.b
    gained = term.gain_rank is not None or term.gain_out is not None
    alike = (a.rows, a.stored.rows, a.stored.columns) == (b.rows, b.stored.rows, b.stored.columns)
    return a.stored.columns if a.tiled and b.tiled and alike and not gained else 0


def _places(term: ServedTerm) -> tuple[tuple[Place, Place, Place], Place]:
    """Return where the kernel of A, A_s and B_s are, and the kernel of B."""
    assert term.a.kernel is not None
    assert term.b.kernel is not None
    return (term.a.kernel, term.a.stored, term.b.stored), term.b.kernel
