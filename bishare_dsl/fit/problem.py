"""The distance of a family of adapters to the given updates, and its derivatives, without computing dW.

``f = sum_i ||dW_i - sum_terms B^T A||^2``. For pairs, ``<B^T A, D^T C> = sum((A C^T) * (B D^T))``, which
only needs ``rows x rows`` matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bishare_dsl.fit.chunks import Chunk, Place, chunks
from bishare_dsl.fit.family import Family, Values, Variable
from bishare_dsl.fit.pairs import GivenPairs, Pair

Block = tuple[str, str]
"""A share and a role. No site uses two of a block's tensors, so each can be solved separately."""


@dataclass(frozen=True)
class Squares:
    """The squared norms of what a fit leaves of some updates, and of the updates."""

    left: float = 0.0
    whole: float = 0.0

    def __add__(self, other: Squares) -> Squares:
        return Squares(self.left + other.left, self.whole + other.whole)

    @property
    def relative(self) -> float:
        """The residual relative to the updates; infinite if only these are zero."""
        if self.whole:
            return math.sqrt(self.left / self.whole)
        return math.inf if self.left else 0.0


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
        self.family = family
        self.given = given
        self.values = dict(values)
        self._fixed = fixed
        self.chunks = chunks(family, given)

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

    def distance(self, variables: Iterable[Variable]) -> float:
        """Return the squared distance at the places that use some tensors, which alone their steps change."""
        wanted = frozenset(variables)
        total = 0.0
        for chunk in self.chunks:
            if not wanted.isdisjoint(chunk.variables):
                pairs = [term.pair(self.values) for term in chunk.terms]
                total += float(_residual(self.given.stacked(chunk.places), pairs).sum())
        return total

    def squares(self) -> dict[Place, Squares]:
        """Return the squared residual and the squared given norm at each place."""
        squares: dict[Place, Squares] = {}
        with torch.no_grad():
            for chunk in self.chunks:
                target = self.given.stacked(chunk.places)
                left = _residual(target, [term.pair(self.values) for term in chunk.terms]).tolist()
                whole = inner(target, target).tolist()
                for place, residual, norm in zip(chunk.places, left, whole, strict=True):
                    squares[place] = Squares(
                        max(residual, 0.0), norm
                    )  # Rounding may make it negative.
        return squares

    def gradient(self, variables: Iterable[Variable]) -> Values:
        """Return the gradient of the squared distance in some tensors."""

        def distance(chunk: Chunk, leaves: Values) -> Tensor:
            pairs = [term.pair(self.values | leaves) for term in chunk.terms]
            return _residual(self.given.stacked(chunk.places), pairs).sum()

        return self._summed(distance, {v: self.values[v] for v in variables})

    def curvature(self, block: Block, direction: Values) -> Values:
        """Return the Hessian of a block times a direction: the gradient of ``||update||^2`` there."""
        share, _ = block

        def size(chunk: Chunk, leaves: Values) -> Tensor:
            pair = chunk.term(share).pair(self.values | leaves)
            return inner(pair, pair).sum()

        return self._summed(size, direction)

    def _summed(self, of: Callable[[Chunk, Values], Tensor], points: Values) -> Values:
        """Sum the gradients of a function of chunks at some points, over the chunks that use them."""
        gradients = {v: torch.zeros_like(point) for v, point in points.items()}
        for chunk in self.chunks:
            used = sorted(chunk.variables & points.keys())
            if not used:
                continue
            leaves = {v: points[v].detach().requires_grad_() for v in used}
            of_chunk = torch.autograd.grad(of(chunk, leaves), list(leaves.values()))
            for variable, gradient in zip(used, of_chunk, strict=True):
                gradients[variable] += gradient
        return gradients


def inner(left: Pair, right: Pair) -> Tensor:
    """Return the inner products ``<B^T A, D^T C>`` of two stacks of pairs, ``(places,)``."""
    return ((left[0] @ right[0].mT) * (left[1] @ right[1].mT)).sum((1, 2))


def _residual(target: Pair, pairs: list[Pair]) -> Tensor:
    """Return ``||target - sum pairs||^2`` for each place."""
    a = torch.cat([target[0], *(pair[0] for pair in pairs)], 1)
    b = torch.cat([target[1], *(-pair[1] for pair in pairs)], 1)
    return inner((a, b), (a, b))
