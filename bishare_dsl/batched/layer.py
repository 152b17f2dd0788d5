"""Compute the updates of a server's layer for a batch, directly from the stored tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from bishare_dsl.batched.bank import Slots
from bishare_dsl.batched.grouping import Batch, Group, part_of
from bishare_dsl.plan import Term
from bishare_dsl.rewrite.island import Uses, joined, select_rows, spans_of
from bishare_dsl.transforms import Transform, Width, load_transform, term_factors, vmap_factors
from bishare_dsl.transforms.factor import DECODE_TOKENS, Factor, add_product, map_tensors


@dataclass(frozen=True)
class Outputs:
    """A site's slice of a layer's output: a layer may have several sites, or this process a part of one.

    Attributes:
        path: of the site.
        place: the slice of the layer's output.
        site_indices: indices of these outputs in the site's output; None for all.
    """

    path: str
    place: slice
    site_indices: Tensor | None = None


class _Term(NamedTuple):
    """A term of a site, with its transform."""

    term: Term
    transform: Transform
    width: Width

    def factors(self, tensors: Mapping[str, Tensor]) -> tuple[Factor, Factor]:
        given = {role: tensors[name] for role, name in self.term.tensors.items()}
        return term_factors(self.transform, given, self.term.rank, self.width)


class LayerTerms:
    """The terms of a layer's sites.

    Args:
        bank: of the adapters.
        outputs: the layer's sites.
        inputs: indices of this process's inputs in the sites' input; None for all.

    Attributes:
        sites: the layer's sites, with their terms as uses of factors.
        downs: a term for each distinct A, indexed by the uses.
        width: the input width of the sites.
    """

    def __init__(self, bank: Slots, outputs: Sequence[Outputs], inputs: Tensor | None = None):
        self.inputs = inputs
        self._computed = bank.layout.computed
        outputs = sorted(outputs, key=lambda part: part.place.start)
        plan = bank.layout.plan
        self._terms: list[_Term] = []
        of_site: list[range] = []
        for part in outputs:
            width = bank.layout.width[part.path]
            first = len(self._terms)
            self._terms += [
                _Term(term, load_transform(term.transform, term.options), width)
                for term in plan.terms_of[part.path]
                if not term.is_magnitude
            ]
            of_site.append(range(first, len(self._terms)))
        self._names = dict.fromkeys(n for t in self._terms for n in t.term.tensors.values())
        self.width = self._terms[0].width.d_in
        place = slice(outputs[0].place.start, outputs[-1].place.stop)
        self._span = place
        self._places = [
            slice(p.place.start - place.start, p.place.stop - place.start) for p in outputs
        ]
        # Factors at equal addresses, for two adapters, show which terms share an A.
        numbers: dict[object, int] = {}
        self.downs: list[int] = []
        starts = [0]
        of_term: list[int] = []
        for i, (a, _) in enumerate(self.pairs(Group(bank, slice(0, 2), slice(0, 2), 1))):
            of_term.append(number := numbers.setdefault(_identity(a), len(numbers)))
            if number == len(self.downs):
                self.downs.append(i)
                starts.append(starts[-1] + self._terms[i].term.rows)
        self.sites: list[tuple[Outputs, Uses]] = []
        self.ups: list[list[int]] = []
        for part, terms in zip(outputs, of_site, strict=True):
            indices = sorted(terms, key=lambda i: of_term[i])
            numbered = [(of_term[i], self._terms[i].term) for i in indices]
            self.ups.append(indices)
            uses = tuple((n, starts[n], term.rows, term.scale) for n, term in numbered)
            self.sites.append((part, uses))

    def pairs(self, group: Group) -> list[tuple[Factor, Factor]]:
        """Compute A and B of all terms, for each adapter of a group."""
        factors = vmap_factors(
            lambda given: [factor for term in self._terms for factor in term.factors(given)],
            {name: group.tensor(name) for name in self._names},
            group.count,
        )
        return [*zip(factors[::2], factors[1::2], strict=True)]

    def _factors(self, group: Group, dtype: torch.dtype) -> tuple[list[Factor], list[list[Factor]]]:
        """Return each A of the layer, and the B of each site's terms, in a dtype."""
        pairs = self.pairs(group)
        if self._computed:
            cast = partial(map_tensors, change=lambda tensor: tensor.to(dtype))
            # The slots are float32, because factors of rounded tensors could be very different.
            pairs = [(cast(a), cast(b)) for a, b in pairs]
        downs = [pairs[i][0] for i in self.downs]
        return downs, [[pairs[i][1] for i in terms] for terms in self.ups]

    def add(self, output: Tensor, x: Tensor, batch: Batch) -> None:
        """Add the adapters' updates for ``x (tokens, d_in)`` to ``output (tokens, d_out)``, in place."""
        x = batch.read(x)
        output = part_of(output, 1, self._span)
        if self.inputs is not None:
            part = x
            x = part.new_zeros(len(part), self.width)
            x[:, self.inputs] = part
        total = batch.room(output)
        for group in batch.groups:
            self._add(group, group.of(x), group.of(total))
        batch.add(output, total)

    def _add(self, group: Group, x: Tensor, total: Tensor) -> None:
        make = partial(self._factors, group, x.dtype)
        downs, ups = group.cached((self, x.dtype), make, computed=self._computed)
        uses = [uses for _, uses in self.sites]
        if group.length <= DECODE_TOKENS:
            z = [down.down(x) for down in downs]
            for target, site_uses, site_ups in zip(self._targets(total), uses, ups, strict=True):
                for (number, _, _, scale), up in zip(site_uses, site_ups, strict=True):
                    up.add_up(target, z[number], scale)
            return
        a, *bs = joined(downs, uses, ups)
        assert a is not None
        # Products with few rows are faster on the left than on the right.
        low = torch.bmm(a, x.mT)
        for target, site_uses, b in zip(self._targets(total), uses, bs, strict=True):
            assert b is not None
            add_product(target, select_rows(low, spans_of(site_uses), -2).mT, b)

    def _targets(self, total: Tensor) -> Iterator[Tensor]:
        """Yield a tensor ``(R, n, d_out)`` for each site, to accumulate its updates in."""
        for (part, _), terms, place in zip(self.sites, self.ups, self._places, strict=True):
            target = part_of(total, 2, place)
            if part.site_indices is None:
                yield target
            else:
                whole = total.new_zeros(*total.shape[:2], self._terms[terms[0]].width.d_out)
                yield whole
                target += whole[..., part.site_indices]


class LayerMagnitudes:
    """The magnitudes of a layer's sites, which scale its output with all terms.

    Args:
        bank: of the adapters.
        outputs: the sites with a magnitude.
        bias: the layer's bias in this output, which is not scaled; None for none.
    """

    def __init__(self, bank: Slots, outputs: Sequence[Outputs], bias: Tensor | None):
        self._bank = bank
        self._outputs = outputs
        self._bias = bias

    def apply(self, output: Tensor, rows: Tensor) -> None:
        """Scale ``output (tokens, d_out)`` in place, by the adapters in these rows of the bank."""
        for part in self._outputs:
            change = self._bank.change(part.path, rows)
            if part.site_indices is not None:
                change = change.index_select(1, part.site_indices)
            target = output[: len(rows), part.place]
            bias = self._bias
            free = target if bias is None else target - bias[part.place].to(target.dtype)
            target.addcmul_(change.to(target.dtype), free)


def _identity(factor: Factor) -> object:
    """Return a key that is equal for factors that are the same tensors in memory."""
    return type(factor), *(
        (part.data_ptr(), part.shape, part.stride())
        if isinstance(part, Tensor)
        else _identity(part)  # type: ignore[arg-type]
        if isinstance(part, tuple)
        else part
        for part in factor  # type: ignore[attr-defined]
    )
