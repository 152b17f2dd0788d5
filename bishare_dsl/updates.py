"""Measure updates, and distances between the updates of two adapters, from their factors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

import torch

from bishare_dsl.convert.effective import delta, finite_factors
from bishare_dsl.models.site import Site
from bishare_dsl.plan.together import plan_of_shares, share_names
from bishare_dsl.spec.spec import MAGNITUDE

if TYPE_CHECKING:
    from bishare_dsl.models.weights import Weight
    from bishare_dsl.plan import Plan

Factors = tuple[torch.Tensor, torch.Tensor]
"""A ``(R, d_in)`` and B ``(R, d_out)`` of a module: ``dW = B^T A``."""

Update = Factors | torch.Tensor
"""The update of a module as factors, or as ``dW (d_out, d_in)`` if it has a magnitude."""


@dataclass(frozen=True)
class Distance:
    """The updates of two adapters at some modules, as squared norms and an inner product."""

    modules: int = 0
    first: float = 0.0
    second: float = 0.0
    product: float = 0.0

    def __add__(self, other: Distance) -> Distance:
        return Distance(*map(sum, zip(astuple(self), astuple(other), strict=True)))

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


@dataclass(frozen=True)
class Energy:
    """How large an adapter's update of some modules is: squared Frobenius norms.

    Attributes:
        shares: ``|dW_s|^2`` of each share that covers some of the modules, by its name.
        together: ``|sum_s dW_s|^2``. Shares overlap, so it is not the sum of theirs.
    """

    shares: Mapping[str, float]
    together: float

    def __add__(self, other: Energy) -> Energy:
        shares = dict(self.shares)
        for share, energy in other.shares.items():
            shares[share] = shares.get(share, 0.0) + energy
        return Energy(shares, self.together + other.together)


NO_ENERGY = Energy({}, 0.0)


def energies(plan: Plan, tensors: Mapping[str, torch.Tensor]) -> dict[str, Energy]:
    """Compute the energy of each module's update, by the module's path.

    Magnitudes, which depend on the base's weights, are left out, and so are parameters trained in full.

    Args:
        plan: the adapter's plan.
        tensors: its tensors by name.

    Raises:
        AdapterError: see `finite_factors`.
    """
    plans: dict[str, Plan] = {}
    for share in share_names(plan):
        part = plan_of_shares(plan, {share})
        if share != MAGNITUDE and part.terms:
            plans[share] = part
    of_module: dict[str, Energy] = {}
    for site in plan.sites:
        parts: dict[str, float] = {}
        downs: list[torch.Tensor] = []
        ups: list[torch.Tensor] = []
        for share, part in plans.items():
            if part.terms_of[site.path]:
                down, up = finite_factors(part, tensors, site, "measuring updates")
                parts[share] = _product((down, up), (down, up))
                downs.append(down)
                ups.append(up)
        if parts:
            whole = torch.cat(downs), torch.cat(ups)
            of_module[site.path] = Energy(parts, _product(whole, whole))
    return of_module


def update_of(
    plan: Plan, tensors: Mapping[str, torch.Tensor], site: Site, weights: Mapping[str, Weight]
) -> Update:
    """Return the update of a module.

    Args:
        plan: the adapter's plan.
        tensors: its tensors by name.
        site: a module of the plan.
        weights: the base's, by path; needed for a module with a magnitude.

    Raises:
        AdapterError: see `finite_factors`; or a quantised weight cannot be dequantised (BS623).
    """
    if plan.magnitude(site.path) is None:
        return finite_factors(plan, tensors, site, "measuring updates")
    return delta(plan, tensors, site, weights[site.path].values())


def distance(one: Update, other: Update) -> Distance:
    """Compare the updates of two adapters at a module."""
    return Distance(1, _product(one, one), _product(other, other), _product(one, other))


def _dense(update: Update) -> torch.Tensor:
    if isinstance(update, torch.Tensor):
        return update
    a, b = update
    return b.mT @ a


def _product(one: Update, other: Update) -> float:
    """Compute ``<B^T A, D^T C> = sum (A C^T) * (B D^T)``, in float64."""
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return float((_dense(one).double() * _dense(other).double()).sum())
    (a, b), (c, d) = one, other
    return float(((a.double() @ c.double().t()) * (b.double() @ d.double().t())).sum())
