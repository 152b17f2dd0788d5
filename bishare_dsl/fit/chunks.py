"""Group sites with equal computations, of one or several adapters, for batched operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from bishare_dsl.fit.family import Family, Variable
from bishare_dsl.fit.pairs import GivenPairs, Pair
from bishare_dsl.models.site import Site
from bishare_dsl.transforms import Transform, Width, effective_pairs, load_transform, stack_or_share

_LEAST_TO_STACK = 4

Place = tuple[str, Site]
"""A site of an adapter."""

_VALUES_PER_CHUNK = 2**22
"""The approximate number of values in a chunk's factors: 32 MiB, and a few times that for gradients."""


@dataclass(frozen=True)
class StackedTerm:
    """A share at the places of a chunk; ``variables[role]`` has one variable per place."""

    share: str
    transform: Transform
    rank: int
    width: Width
    scale: float
    variables: Mapping[str, tuple[Variable, ...]]

    def pair(self, values: Mapping[Variable, Tensor]) -> Pair:
        """Compute the effective factors: A ``(places, rows, d_in)``, B ``(places, rows, d_out)``."""
        used = {role: [values[v] for v in variables] for role, variables in self.variables.items()}
        count = len(next(iter(used.values())))
        tensors = {role: stack_or_share(values) for role, values in used.items()}
        return effective_pairs(self.transform, tensors, count, self.rank, self.width, self.scale)


@dataclass(frozen=True)
class Chunk:
    """Places with equal widths and terms, whose given pairs have the same number of rows."""

    places: tuple[Place, ...]
    terms: tuple[StackedTerm, ...]

    def term(self, share: str) -> StackedTerm:
        """Return the term of a share, which has one."""
        return next(term for term in self.terms if term.share == share)

    @cached_property
    def variables(self) -> frozenset[Variable]:
        """The tensors that the terms use."""
        used: set[Variable] = set()
        for term in self.terms:
            for variables in term.variables.values():
                used.update(variables)
        return frozenset(used)


def chunks(family: Family, given: GivenPairs) -> list[Chunk]:
    """Group all places, in an order that depends only on the plan."""
    groups: dict[object, list[Place]] = {}
    terms_of = family.plan.terms_of
    # With many adapters, group by site, so that shared tensors are stacked once instead of per
    # adapter.
    apart = len(family.names) >= _LEAST_TO_STACK
    for site in family.plan.base.every_site:
        terms = terms_of.get(site.path, ())
        settings = tuple((t.share, t.transform, repr(t.options), t.rank, t.scale) for t in terms)
        for name in family.names:
            rows = given.rows(name, site)
            if terms or rows:
                key = (settings, site.d_in, site.d_out, rows, site.path if apart else "")
                groups.setdefault(key, []).append((name, site))
    grouped = []
    for places in groups.values():
        _, site = places[0]
        terms = terms_of.get(site.path, ())
        rows = given.rows(*places[0]) + sum(term.rows for term in terms)
        most = max(1, _VALUES_PER_CHUNK // ((site.d_in + site.d_out) * max(rows, 1)))
        starts = range(0, len(places), most)
        grouped += [_chunk(family, places[start : start + most]) for start in starts]
    return grouped


def _chunk(family: Family, places: Sequence[Place]) -> Chunk:
    terms_of = family.plan.terms_of
    _, first = places[0]
    stacked = []
    for i, term in enumerate(terms_of.get(first.path, ())):
        variables = {}
        for role in term.tensors:
            names = [terms_of[site.path][i].tensors[role] for _, site in places]
            adapters = [name for name, _ in places]
            variables[role] = tuple(map(family.variable, adapters, names))
        stacked.append(
            StackedTerm(
                share=term.share,
                transform=load_transform(term.transform, term.options),
                rank=term.rank,
                width=Width(first.d_in, first.d_out),
                scale=term.scale,
                variables=variables,
            )
        )
    return Chunk(tuple(places), tuple(stacked))
