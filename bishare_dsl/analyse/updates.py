"""Compute norms of updates, and distances between the updates of two adapters, from their factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from bishare_dsl.export.effective import finite_factors
from bishare_dsl.models.site import Site

if TYPE_CHECKING:
    from bishare_dsl.adapter.contents import StoredAdapter

Factors = tuple[torch.Tensor, torch.Tensor]
"""A ``(R, d_in)`` and B ``(R, d_out)`` of a module: ``dW = B^T A``."""


@dataclass(frozen=True)
class Distance:
    """The updates of two adapters at some modules, as squared norms and an inner product."""

    modules: int
    first: float
    second: float
    product: float

    @property
    def relative(self) -> float | None:
        """``|dW_1 - dW_2| / |dW_1|`` in Frobenius norms, or None if the first update is zero."""
        left = max(self.first + self.second - 2 * self.product, 0.0)
        return math.sqrt(left / self.first) if self.first else None

    @property
    def cosine(self) -> float | None:
        """The cosine of the two updates, or None if one of them is zero."""
        norms = math.sqrt(self.first * self.second)
        return self.product / norms if norms else None


def factors_of(stored: StoredAdapter) -> dict[Site, Factors]:
    """Return the effective factors of each module that an adapter updates.

    Raises:
        AdapterError: an update is not a matrix (BS633) or not finite (BS628), or a tensor depends on the
            base's weights (BS688).
    """
    plan, tensors = stored.plan, stored.tensors()
    return {
        site: finite_factors(plan, tensors, site, "measuring updates")
        for site in plan.sites
        if plan.terms_of[site.path]
    }


def norm(factors: Factors) -> float:
    """Return the Frobenius norm of an update."""
    return math.sqrt(max(_product(factors, factors), 0.0))


def distance(pairs: Sequence[tuple[Factors, Factors]]) -> Distance:
    """Compare two adapters by their factors at the same modules."""
    return Distance(
        len(pairs),
        sum(_product(a, a) for a, _ in pairs),
        sum(_product(b, b) for _, b in pairs),
        sum(_product(a, b) for a, b in pairs),
    )


def _product(one: Factors, other: Factors) -> float:
    """Compute ``<B^T A, D^T C> = sum (A C^T) * (B D^T)``, in float64."""
    (a, b), (c, d) = one, other
    return float(((a.double() @ c.double().t()) * (b.double() @ d.double().t())).sum())
