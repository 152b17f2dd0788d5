"""What one layer of the model adds to a batch, straight from what adapters are stored as."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from bishare_dsl.serve.batch import Group
from bishare_dsl.serve.terms import Factor, Layout, Place, ServedTerm, side_by_side
from bishare_dsl.serve.tiles import Tiles, flat, in_blocks, lift, out_of_tiles

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
        self.width, self._scale = terms[0].a.side, terms[0].scale
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
            for where, delta in self._deltas(group, rows):
                if where.of_site is not None:
                    delta = delta[..., where.of_site]
                group.add(output[:, where.place], delta, self._scale)

    def _deltas(self, group: Group, x: Tensor) -> list[tuple[Outputs, Tensor]]:
        """Return ``(R, n, d_out)`` for each site, but for the layer's scale: what its terms make of ``x``."""
        if group.length >= MANY:
            whole = torch.cat([_matrix(group, factor) for factor in self._downs], 1)
            parts = torch.bmm(x, whole.mT).split([factor.rows for factor in self._downs], 2)
            z = dict(zip(self._downs, parts, strict=True))
            return [(where, self._whole(group, terms, z, None)) for where, terms in self.sites]
        z, u = self._tiles.down(group, x)
        for first, place, runs in self._plain:
            # Few tokens are multiplied more quickly on the right than on the left.
            product = torch.bmm(group.tensor(place)[..., first : first + self.width], x.mT).mT
            z |= {factor: product[..., start:stop] for factor, start, stop in runs}
        for factor in self._downs:
            if factor not in z:
                z[factor] = torch.bmm(x, _matrix(group, factor).mT)
        found = []
        for where, terms in self.sites:
            tiled = [term for term in terms if term.b.tiled and term.gain_out is None]
            total = self._tiled(group, tiled, z, u)
            others = [term for term in terms if term not in tiled]
            found.append((where, self._whole(group, others, z, total)))
        return found

    def _whole(
        self,
        group: Group,
        terms: Sequence[ServedTerm],
        z: Mapping[Factor, Tensor],
        total: Tensor | None,
    ) -> Tensor:
        """Add to a total what terms make of their ``z``, by effective factors."""
        for term in terms:
            low = self._scaled(group, term, flat(z[term.a]))
            if term.gain_out is None and total is not None:
                add_product(total, low, _matrix(group, term.b))
                continue
            delta = torch.bmm(low, _matrix(group, term.b))
            if term.gain_out is not None:
                delta = delta * group.tensor(term.gain_out)
            total = delta if total is None else total + delta
        assert total is not None
        return total

    def _tiled(
        self,
        group: Group,
        terms: Sequence[ServedTerm],
        z: Mapping[Factor, Tensor],
        u: Mapping[tuple[Factor, Place], Tensor],
    ) -> Tensor | None:
        """Do the same by tiles, for terms whose B is a Kronecker product."""
        sums: dict[int, Tensor] = {}
        for term in terms:
            b, kernel = term.b.stored, term.b.kernel
            assert kernel is not None
            if term.scale != self._scale or (found := u.get((term.a, b))) is None:
                low = self._scaled(group, term, flat(z[term.a]))
                found = lift(group, b, in_blocks(low, term.b))
            across, size = group.tensor(kernel).mT, b.columns
            if size in sums:
                add_product(sums[size], across, found)
            else:  # One row is a product of two vectors.
                one = kernel.rows == 1
                sums[size] = across * found if one else torch.bmm(across, found)
        total: Tensor | None = None
        for size, tiles in sums.items():
            delta = out_of_tiles(tiles, size, terms[0].b.side)
            total = delta if total is None else total + delta
        return total

    def _scaled(self, group: Group, term: ServedTerm, z: Tensor) -> Tensor:
        """Return a term's ``z (R, n, rows)`` by its gain, and by what its scale is to the layer's."""
        if term.scale != self._scale:
            z = z * (term.scale / self._scale)
        return z if term.gain_rank is None else z * group.tensor(term.gain_rank)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``left (R, i, j) @ right (R, j, k)`` to a total, in place: small ones as products of vectors.

    One of fewer than 400 multiplications torch makes by a loop of its own, which takes three times as long.
    """
    rows, count, columns = left.shape[1], left.shape[2], right.shape[2]
    if count > 1 and rows * count * columns >= 400:
        total.baddbmm_(left, right)
    else:
        for i in range(count):
            total.addcmul_(left[:, :, i : i + 1], right[:, i : i + 1])


def _matrix(group: Group, factor: Factor) -> Tensor:
    """Return an effective factor of each of a group's adapters, ``(R, rows, side)``."""
    kept = factor.kept
    tensors = {kept.role: group.tensor(factor.stored)}
    if kept.kernel is not None and factor.kernel is not None:
        tensors[kept.kernel] = group.tensor(factor.kernel)
    return kept.factor(tensors, factor.side)
