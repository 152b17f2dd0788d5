"""What one layer of the model adds to a batch, straight from what adapters are stored as."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from bishare_dsl.serve.batch import Batch, Group, part_of
from bishare_dsl.serve.terms import Factor, Layout, Place, ServedTerm, side_by_side
from bishare_dsl.serve.tiles import Tiles, size_of

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
        outputs = sorted(outputs, key=lambda part: part.place.start)
        self.sites = [(part, layout.terms[part.path]) for part in outputs]
        terms = [term for _, found in self.sites for term in found]
        self.width = terms[0].a.side
        first = outputs[0].place.start
        self._span = slice(first, outputs[-1].place.stop)
        self._places = [slice(p.place.start - first, p.place.stop - first) for p in outputs]
        sites = [found for _, found in self.sites]
        sizes = sorted({size_of(term) for term in terms} - {0})
        self._tiles = [Tiles(size, sites) for size in sizes]
        self._downs = [*dict.fromkeys(term.a for term in terms)]
        others = [*dict.fromkeys(term.a for term in terms if not size_of(term))]
        self._plain: list[tuple[int, Place, list[Factor]]] = []
        plain = sorted((f for f in others if f.kernel is None), key=lambda f: f.first)
        for first, same in groupby(plain, key=lambda f: f.first):
            runs = side_by_side((factor.stored, factor) for factor in same)
            self._plain += [(first, whole, [part for part, *_ in parts]) for whole, parts in runs]
        self._made = [factor for factor in others if factor.kernel is not None]
        self._others = [[term for term in found if not size_of(term)] for found in sites]

    def add(self, output: Tensor, x: Tensor, batch: Batch) -> None:
        """Add to ``output (tokens, d_out)`` what the adapters make of ``x (tokens, d_in)``, in place."""
        x, output = batch.read(x), part_of(output, 1, self._span)
        if self.inputs is not None:
            part = x
            x = part.new_zeros(len(part), self.width)
            x[:, self.inputs] = part
        total = batch.room(output)
        for group in batch.groups:
            add = self._add_few if group.length < MANY else self._add_many
            add(group, group.of(x), group.of(total))
        batch.add(output, total)

    def _targets(self, total: Tensor) -> Iterator[Tensor]:
        """Give for each site ``(R, n, d_out)``, to which to add what its terms make."""
        for (part, terms), place in zip(self.sites, self._places, strict=True):
            target = part_of(total, 2, place)
            if part.of_site is None:
                yield target
            else:
                whole = total.new_zeros(*total.shape[:2], terms[0].b.side)
                yield whole
                target += whole[..., part.of_site]

    def _add_many(self, group: Group, x: Tensor, total: Tensor) -> None:
        """Add by effective factors: one product with every A, and one with all B of a site."""
        whole = torch.cat([_matrix(group, factor) for factor in self._downs], 1)
        # Few rows are multiplied more quickly on the left than on the right.
        product = torch.bmm(whole, x.mT).mT
        parts = product.split_with_sizes([factor.rows for factor in self._downs], 2)
        z = dict(zip(self._downs, parts, strict=True))
        for target, (_, terms) in zip(self._targets(total), self.sites, strict=True):
            low = torch.cat([_gained(group, z[term.a], term) for term in terms], 2)
            add_product(target, low, torch.cat([_up(group, term) for term in terms], 1), 1.0)

    def _add_few(self, group: Group, x: Tensor, total: Tensor) -> None:
        """Add tile by tile where factors are Kronecker products."""
        z = {factor: torch.bmm(x, _matrix(group, factor).mT) for factor in self._made}
        for first, place, factors in self._plain:
            a = _columns(group, place, first, self.width).mT
            parts = torch.bmm(x, a).split_with_sizes([factor.rows for factor in factors], 2)
            z |= zip(factors, parts, strict=True)
        made: list[tuple[Tiles, Tensor]] = []
        for tiles in self._tiles:
            kernels, u = tiles.lift(group, x)
            if tiles.are_all(total):
                total.view(len(u), -1, tiles.size).baddbmm_(kernels, u)
            else:
                made.append((tiles, torch.bmm(kernels, u)))
        targets = zip(self._targets(total), self._others, strict=True)
        for number, (target, others) in enumerate(targets):
            for tiles, found in made:
                if (part := tiles.of_site(number, found, target.shape[2])) is not None:
                    target += part
            for term in others:
                low, b = _gained(group, z[term.a], term), _matrix(group, term.b)
                if term.gain_out is None:
                    add_product(target, low, b, term.scale)
                else:
                    gain = group.tensor(term.gain_out)
                    target.addcmul_(torch.bmm(low, b), gain, value=term.scale)


def add_product(total: Tensor, left: Tensor, right: Tensor, scale: float) -> None:
    """Add ``scale * left (R, i, j) @ right (R, j, k)`` to a total, in place.

    As products of vectors where torch's own would take three times as long: those of fewer than 400
    multiplications it makes by a loop, and those into a part of an output one after the other.
    """
    rows, count, columns = left.shape[1], left.shape[2], right.shape[2]
    whole = total.is_contiguous()
    if count == 1 or rows * count * columns < 400 or (count < 4 and not whole):
        for column, row in zip(left.chunk(count, 2), right.chunk(count, 1), strict=True):
            total.addcmul_(column, row, value=scale)
    elif whole or len(total) <= rows:
        total.baddbmm_(left, right, alpha=scale)
    else:
        total.add_(torch.bmm(left, right), alpha=scale)


def _gained(group: Group, z: Tensor, term: ServedTerm) -> Tensor:
    """Return a term's ``z (R, n, rows)`` with the gain of its ranks."""
    return z if term.gain_rank is None else z * group.tensor(term.gain_rank)


def _up(group: Group, term: ServedTerm) -> Tensor:
    """Return the effective B of a term with its scale and the gain of its outputs, ``(R, rows, d_out)``."""
    b = _matrix(group, term.b) * term.scale
    return b if term.gain_out is None else b * group.tensor(term.gain_out)


def _matrix(group: Group, factor: Factor) -> Tensor:
    """Return an effective factor of each of a group's adapters, ``(R, rows, side)``."""
    kept, stored = factor.kept, factor.stored
    if kept.kernel is None or factor.kernel is None:
        return _columns(group, stored, factor.first, factor.side)
    tensors = {kept.role: group.tensor(stored), kept.kernel: group.tensor(factor.kernel)}
    return kept.factor(tensors, factor.side)


def _columns(group: Group, place: Place, first: int, width: int) -> Tensor:
    """Return columns of a tensor of each of a group's adapters, ``(R, rows, width)``."""
    return group.view((place, first, width), lambda: group.tensor(place).narrow(2, first, width))
