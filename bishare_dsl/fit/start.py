"""Initial values from leading eigenvectors: the best shared factor for many updates.

If updates ``dW_i`` share one A of rank r and have private B, the best rows of A are the r leading
eigenvectors of ``sum dW_i^T dW_i``. A shared B uses ``sum dW_i dW_i^T`` likewise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bishare_dsl.fit.chunks import Place
from bishare_dsl.fit.family import Family, Values, Variable
from bishare_dsl.fit.pairs import GivenPairs
from bishare_dsl.models.site import Site

Role = tuple[str, str]
"""A share, and ``A`` or ``B``."""


def leading(family: Family, given: GivenPairs, values: Values) -> Values:
    """Return initial values with leading eigenvectors in the plan's most shared factor.

    That is the trained A or B, as wide as each of its modules, with most modules over all adapters. With a
    core between A and B, both get their eigenvectors. Other values do not change.

    Args:
        family: the fitted adapters.
        given: the updates to approximate.
        values: the other initial values.
    """
    plan = family.plan
    sites = {site.path: site for site in plan.sites}
    uses: dict[Role, dict[Variable, list[Place]]] = {}
    unfit: set[Role] = set()
    for pool in plan.pools:
        tensor, members = plan.tensor[pool.tensor], [sites[path] for path in pool.members]
        width = tensor.shape[1]
        if not tensor.trainable or any(width != _side(site, pool.role) for site in members):
            unfit.add((pool.share, pool.role))
        of_role = uses.setdefault((pool.share, pool.role), {})
        for adapter in family.names:
            places = of_role.setdefault(family.variable(adapter, tensor.name), [])
            places += [(adapter, site) for site in members]
    cores = {
        term.share
        for term in plan.terms
        for role, name in term.tensors.items()
        if role not in ("A", "B") and plan.tensor[name].trainable
    }
    shared = {
        role: sum(map(len, places.values())) / len(places)
        for role, places in uses.items()
        if role not in unfit
    }
    if not shared:
        return values
    share, widest = max(shared, key=lambda role: shared[role])
    both = share in cores and (share, "A") in shared and (share, "B") in shared
    starts = dict(values)
    for role in ("A", "B") if both else (widest,):
        for variable, places in uses[share, role].items():
            pairs = [given.stacked([place]) for place in places]
            rows = [spread(a[0], b[0], role) for a, b in pairs]
            found = directions(torch.cat(rows), len(values[variable]))
            starts[variable] = torch.cat([found, values[variable][len(found) :]])
    return starts


def _side(site: Site, role: str) -> int | None:
    return {"A": site.d_in, "B": site.d_out}.get(role)


def spread(a: Tensor, b: Tensor, role: str) -> Tensor:
    """Return rows ``R`` of an update ``B^T A`` with ``R^T R = dW^T dW`` for A, ``dW dW^T`` for B."""
    factor, other = (a, b) if role == "A" else (b, a)
    triangle: Tensor = torch.linalg.qr(other.t(), mode="r").R
    return triangle @ factor


def directions(rows: Tensor, count: int) -> Tensor:
    """Return at most ``count`` leading right singular vectors of rows, orthonormal; no rounding errors."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        _, values, right = torch.svd_lowrank(rows, min(*rows.shape, count + 16), 4)
    found: Tensor = right.t()[:count]
    return found[values[:count] > 1e-7 * values[:1].sum()]
