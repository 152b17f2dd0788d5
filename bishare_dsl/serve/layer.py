"""What one layer of the model adds to a batch, straight from what adapters are stored as."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from bishare_dsl.serve.batch import Group
from bishare_dsl.serve.terms import Factor, Layout, Place, ServedTerm, side_by_side
from bishare_dsl.serve.tiles import Tiles, flat, in_blocks, lift, out_of_tiles, tiles_in

MANY = 16
"""With as many tokens of each adapter, to make the effective factors costs less than to go by tiles."""


@dataclass(frozen=True)
class Outputs:
    """A site's part of a layer's output: a layer may hold several sites, or this process a share of one.

    Attributes:
        path: the site's.
        place: where its part is.
        of_site: which of the site's outputs these are; None for all.
    """

    path: str
    place: slice
    of_site: Tensor | None = None


class LayerTerms:
    """The terms of a layer's sites.

    Args:
        layout: of the adapters.
        outputs: the layer's sites.
        inputs: which of the sites' inputs this process has; None for all.
    """

    def __init__(self, layout: Layout, outputs: Sequence[Outputs], inputs: Tensor | None = None):
        self.inputs = inputs
        self.sites = [(part, layout.terms[part.path]) for part in outputs]
        terms = [term for _, found in self.sites for term in found]
        self.width = terms[0].a.side
        self._downs = [*dict.fromkeys(term.a for term in terms)]
        self._tiles = Tiles([term for term in terms if term.a.tiled])
        self._plain: list[tuple[int, Place, list[tuple[Factor, int, int]]]] = []
        plain = sorted((f for f in self._downs if f.kernel is None), key=lambda f: f.first)
        for first, found in groupby(plain, key=lambda f: f.first):
            runs = side_by_side((factor.stored, factor) for factor in found)
            self._plain += [(first, whole, parts) for whole, parts in runs]

    def add(self, output: Tensor, x: Tensor, batch: Sequence[Group]) -> None:
        """Add to ``output (tokens, d_out)`` what the adapters make of ``x (tokens, d_in)``, in place."""
        for group in batch:
            rows = group.rows(x)
            if self.inputs is not None:
                part = rows
                rows = part.new_zeros(*part.shape[:2], self.width)
                rows[..., self.inputs] = part
            z, u = self._down(group, rows)
            for where, terms in self.sites:
                target = output[:, where.place]
                direct = group.tokens is None and where.of_site is None
                shape = *rows.shape[:2], terms[0].b.side
                total = target.view(shape) if direct else rows.new_zeros(shape)
                self._up(group, terms, z, u, total)
                if not direct:
                    whole = where.of_site is None
                    group.add(target, total if whole else total[..., where.of_site])

    def _down(self, group: Group, x: Tensor) -> tuple[dict[Factor, Tensor], dict[Factor, Tensor]]:
        """Multiply ``x (R, n, d_in)`` by each A: its z, and what `Tiles.down` has of it already."""
        if group.length >= MANY:
            whole = torch.cat([_matrix(group, factor) for factor in self._downs], 1)
            parts = torch.bmm(x, whole.mT).split([factor.rows for factor in self._downs], 2)
            return dict(zip(self._downs, parts, strict=True)), {}
        z, u = self._tiles.down(group, x)
        for first, place, runs in self._plain:
            # Few tokens are multiplied more quickly on the right than on the left.
            product = torch.bmm(group.tensor(place)[..., first : first + self.width], x.mT).mT
            z |= {factor: product[..., start:stop] for factor, start, stop in runs}
        for factor in self._downs:
            if factor not in z:
                z[factor] = torch.bmm(x, _matrix(group, factor).mT)
        return z, u

    def _up(
        self,
        group: Group,
        terms: Sequence[ServedTerm],
        z: Mapping[Factor, Tensor],
        u: Mapping[Factor, Tensor],
        total: Tensor,
    ) -> None:
        """Add to ``total (R, n, d_out)`` what a site's terms make of their z, in place."""
        sums: dict[int, Tensor] = {}
        for term in terms:
            tiled = term.b.tiled and term.gain_out is None and group.length < MANY
            if tiled and (found := u.get(term.a)) is not None:
                low = found
            else:
                low = flat(z[term.a])
                if term.gain_rank is not None:
                    low = low * group.tensor(term.gain_rank)
                if tiled:
                    low = lift(group, term.b.stored, in_blocks(low, term.b))
            if tiled and term.b.kernel is not None:
                size = term.b.stored.columns
                across = group.tensor(term.b.kernel).mT
                if (target := tiles_in(total, size)) is None:
                    made = low.new_zeros(len(low), across.shape[1], low.shape[2])
                    target = sums.setdefault(size, made)
                add_product(target, across, low, term.scale)
            elif term.gain_out is None:
                add_product(total, low, _matrix(group, term.b), term.scale)
            else:
                delta = torch.bmm(low, _matrix(group, term.b))
                total.addcmul_(delta, group.tensor(term.gain_out), value=term.scale)
        for size, tiles in sums.items():
            total += out_of_tiles(tiles, size, total.shape[2])


def add_product(total: Tensor, left: Tensor, right: Tensor, scale: float) -> None:
    """Add ``scale * left (R, i, j) @ right (R, j, k)`` to a total, in place.

    As products of vectors where torch's own would take three times as long: those of fewer than 400
    multiplications it makes by a loop, and around one into a part of an output it makes two copies.
    """
    rows, count, columns = left.shape[1], left.shape[2], right.shape[2]
    small = rows * count * columns < 400 or (count < 4 and not total.is_contiguous())
    if count > 1 and not small:
        total.baddbmm_(left, right, alpha=scale)
    else:
        for i in range(count):
            total.addcmul_(left[:, :, i : i + 1], right[:, i : i + 1], value=scale)


def _matrix(group: Group, factor: Factor) -> Tensor:
    """Return an effective factor of each of a group's adapters, ``(R, rows, side)``."""
    kept = factor.kept
    tensors = {kept.role: group.tensor(factor.stored)}
    if kept.kernel is not None and factor.kernel is not None:
        tensors[kept.kernel] = group.tensor(factor.kernel)
    return kept.factor(tensors, factor.side)
