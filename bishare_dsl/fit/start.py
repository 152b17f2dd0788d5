"""Initial values from leading eigenvectors: the best shared factor for many updates.

If updates ``dW_i`` share one A of rank r and have private B, the best rows of A are the r leading
eigenvectors of ``sum dW_i^T dW_i``. A shared B uses ``sum dW_i dW_i^T`` likewise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bishare_dsl.fit.chunks import Place
from bishare_dsl.fit.family import Family, Values, Variable
from bishare_dsl.fit.pairs import GivenPairs
from bishare_dsl.models.site import Site


@dataclass(frozen=True, order=True)
class Factor:
    """The tensors of a share in one role, ``A`` or ``B``."""

    share: str
    role: str


def leading(family: Family, given: GivenPairs, values: Values) -> Values:
    """Return initial values with leading eigenvectors in the plan's most shared factor.

    That is the trained A or B, as wide as each of its modules, with most modules over all adapters. With a
    core between A and B, both get their eigenvectors. Other values do not change.

    Args:
        family: the fitted adapters.
        given: the updates to approximate.
        values: the other initial values.
    """
    uses = _uses(family)
    if not uses:
        return values
    shared = {
        factor: sum(map(len, places.values())) / len(places) for factor, places in uses.items()
    }
    widest = max(shared, key=lambda factor: shared[factor])
    both = [Factor(widest.share, "A"), Factor(widest.share, "B")]
    chosen = [widest]
    if _has_core(family, widest.share) and all(factor in uses for factor in both):
        chosen = both
    starts = dict(values)
    for factor in chosen:
        for variable, places in uses[factor].items():
            pairs = [given.stacked([place]) for place in places]
            rows = torch.cat([spread(a[0], b[0], factor.role) for a, b in pairs])
            first = directions(rows, len(values[variable]))
            starts[variable] = torch.cat([first, values[variable][len(first) :]])
    return starts


def _uses(family: Family) -> dict[Factor, dict[Variable, list[Place]]]:
    """Return the places of each variable of the factors that eigenvectors fit: trained, and of full width."""
    plan = family.plan
    sites = {site.path: site for site in plan.sites}
    uses: dict[Factor, dict[Variable, list[Place]]] = {}
    unfit: set[Factor] = set()
    for pool in plan.pools:
        factor = Factor(pool.share, pool.role)
        tensor = plan.tensor[pool.tensor]
        members = [sites[path] for path in pool.members]
        if not tensor.trainable or any(
            _side(site, pool.role) != tensor.shape[1] for site in members
        ):
            unfit.add(factor)
        places_of = uses.setdefault(factor, {})
        for adapter in family.names:
            places = places_of.setdefault(family.variable(adapter, tensor.name), [])
            places += [(adapter, site) for site in members]
    return {factor: places for factor, places in uses.items() if factor not in unfit}


def _has_core(family: Family, share: str) -> bool:
    """Return whether a share trains a tensor between A and B."""
    for term in family.plan.terms:
        if term.share != share:
            continue
        for role, name in term.tensors.items():
            if role not in ("A", "B") and family.plan.tensor[name].trainable:
                return True
    return False


def _side(site: Site, role: str) -> int | None:
    return {"A": site.d_in, "B": site.d_out}.get(role)


def spread(a: Tensor, b: Tensor, role: str) -> Tensor:
    """Return rows ``R`` of an update ``B^T A`` with ``R^T R = dW^T dW`` for A, ``dW dW^T`` for B."""
    if role == "A":
        factor, other = a, b
    else:
        factor, other = b, a
    triangle: Tensor = torch.linalg.qr(other.t(), mode="r").R
    return triangle @ factor


def directions(rows: Tensor, count: int) -> Tensor:
    """Return at most ``count`` leading right singular vectors of rows, orthonormal; no rounding errors."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        _, values, right = torch.svd_lowrank(rows, min(*rows.shape, count + 16), 4)
    first: Tensor = right.t()[:count]
    return first[values[:count] > 1e-7 * values[:1].sum()]
