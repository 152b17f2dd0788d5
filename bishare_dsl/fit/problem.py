"""The distance of a family of adapters to the given updates, and its derivatives, without computing dW.

``f = sum_i ||dW_i - sum_terms B^T A||^2``. For pairs, ``<B^T A, D^T C> = sum((A C^T) * (B D^T))``, which
only needs ``rows x rows`` matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property

import torch
from torch import Tensor

from bishare_dsl.fit.chunks import Chunk, Place, StackedTerm, chunks
from bishare_dsl.fit.family import Family, Values, Variable
from bishare_dsl.fit.pairs import GivenPairs, Pair

Block = tuple[str, str]
"""A share and a role. No site uses two of a block's tensors, so each can be solved separately."""


class Problem:
    """The given updates, and the values to fit to them.

    Args:
        family: the fitted adapters.
        given: the updates to approximate.
        values: the values of all tensors.
        fixed: the names of fixed tensors.
    """

    def __init__(
        self,
        family: Family,
        given: GivenPairs,
        values: Values,
        fixed: frozenset[str] = frozenset(),
    ) -> None:
        self.family, self.given, self.values, self._fixed = family, given, values, fixed
        self.chunks = chunks(family, given)
        targets = (given.stacked(chunk.places) for chunk in self.chunks)
        self.norm = math.sqrt(sum(float(inner(target, target).sum()) for target in targets))
        """The norm of all given updates."""

    @cached_property
    def blocks(self) -> dict[Block, tuple[Variable, ...]]:
        """The fitted tensors by share and role, in the order of the plan."""
        trains = {t.name for t in self.family.plan.tensors if t.trainable} - self._fixed
        variables_of: dict[Block, dict[Variable, None]] = {}
        for chunk in self.chunks:
            for term in chunk.terms:
                for role, variables in term.variables.items():
                    trained = (v for v in variables if v[1] in trains)
                    variables_of.setdefault((term.share, role), {}).update(dict.fromkeys(trained))
        return {block: tuple(variables) for block, variables in variables_of.items() if variables}

    def error(self) -> float:
        """Return the relative distance of all updates."""
        return math.sqrt(sum(left for left, _ in self.squares().values())) / (self.norm or 1.0)

    def fitted_square(self) -> float:
        """Return the squared distance at the places that use a fitted tensor; no step changes the others."""
        fitted = {variable for variables in self.blocks.values() for variable in variables}
        total = 0.0
        for chunk in self.chunks:
            used = (v for term in chunk.terms for vs in term.variables.values() for v in vs)
            if not fitted.isdisjoint(used):
                pairs = [term.pair(self.values) for term in chunk.terms]
                total += float(_residual(self.given.stacked(chunk.places), pairs).sum())
        return total

    def squares(self) -> dict[Place, tuple[float, float]]:
        """Return the squared residual and the squared given norm at each place."""
        squares: dict[Place, tuple[float, float]] = {}
        with torch.no_grad():
            for chunk in self.chunks:
                target = self.given.stacked(chunk.places)
                left = _residual(target, [term.pair(self.values) for term in chunk.terms])
                whole = inner(target, target)
                rows = zip(left.tolist(), whole.tolist(), strict=True)
                squares.update(zip(chunk.places, ((max(a, 0.0), b) for a, b in rows), strict=True))
        return squares

    def gradient(self, variables: Iterable[Variable]) -> tuple[float, Values]:
        """Return the squared distance at the places that use some tensors, and its gradient."""
        wanted = frozenset(variables)

        def distance(chunk: Chunk, values: Mapping[Variable, Tensor]) -> Tensor:
            pairs = [term.pair(values) for term in chunk.terms]
            return _residual(self.given.stacked(chunk.places), pairs).sum()

        return self._summed(wanted, distance, lambda chunk: chunk.terms)

    def curvature(self, block: Block, direction: Values) -> Values:
        """Return the Hessian of a block's tensors times a direction: the gradient of ``||M v||^2``."""
        share, _ = block

        def size(chunk: Chunk, values: Mapping[Variable, Tensor]) -> Tensor:
            pair = chunk.term(share).pair(values)  # type: ignore[union-attr]
            return inner(pair, pair).sum()

        def used(chunk: Chunk) -> tuple[StackedTerm, ...]:
            return tuple(term for term in chunk.terms if term.share == share)

        frozen, self.values = self.values, self.values | direction
        try:
            return self._summed(frozenset(direction), size, used)[1]
        finally:
            self.values = frozen

    def _summed(
        self,
        wanted: frozenset[Variable],
        of: Callable[[Chunk, Mapping[Variable, Tensor]], Tensor],
        used: Callable[[Chunk], Iterable[StackedTerm]],
    ) -> tuple[float, Values]:
        total, gradients = 0.0, {v: torch.zeros_like(self.values[v]) for v in wanted}
        for chunk in self.chunks:
            here = {v for t in used(chunk) for vs in t.variables.values() for v in vs} & wanted
            if not here:
                continue
            leaves = {v: self.values[v].detach().requires_grad_() for v in sorted(here)}
            value = of(chunk, self.values | leaves)
            total += float(value.detach())
            for v, gradient in zip(
                leaves, torch.autograd.grad(value, list(leaves.values())), strict=True
            ):
                gradients[v] += gradient
        return total, gradients


def inner(left: Pair, right: Pair) -> Tensor:
    """Return the inner products ``<B^T A, D^T C>`` of two stacks of pairs, ``(places,)``."""
    return ((left[0] @ right[0].mT) * (left[1] @ right[1].mT)).sum((1, 2))


def _residual(target: Pair, pairs: list[Pair]) -> Tensor:
    """Return ``||target - sum pairs||^2`` for each place."""
    a = torch.cat([target[0], *(pair[0] for pair in pairs)], 1)
    b = torch.cat([target[1], *(-pair[1] for pair in pairs)], 1)
    return inner((a, b), (a, b))
