"""Initial values from leading eigenvectors: the best shared factor for many updates.

If updates ``dW_i`` share one A of rank r and have private B, the best rows of A are the r leading
eigenvectors of ``sum dW_i^T dW_i``. A shared B uses ``sum dW_i dW_i^T`` likewise. If A and B are both
shared, with a core between them, they are computed alternately, each from the part that the other retains.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor

from bishare_dsl.fit.family import Family, Values, Variable
from bishare_dsl.fit.pairs import GivenPairs
from bishare_dsl.models.site import Site
from bishare_dsl.plan import Term

_POWER_ITERATIONS = 3
_ROLES = ("A", "B")


def leading(family: Family, given: GivenPairs, values: Values) -> Values:
    """Return initial values with leading eigenvectors in the plan's most shared factor, or in both A and B
    of a share with a core. Other values do not change.

    A factor qualifies if its width equals the width of each of its modules. The most shared factor is used
    by the most modules over all adapters.

    Args:
        family: the fitted adapters.
        given: the updates to approximate.
        values: the other initial values.
    """
    share, roles = _widest(family)
    starts = dict(values)
    if not roles:
        return starts
    uses: dict[str, dict[Variable, list[tuple[str, Site, Term]]]] = {role: {} for role in roles}
    for name in family.names:
        for site in family.plan.sites:
            for term in family.plan.terms_of[site.path]:
                if term.share == share and given.rows(name, site):
                    for role in roles:
                        variable = family.variable(name, term.tensors[role])
                        uses[role].setdefault(variable, []).append((name, site, term))
    started: set[Variable] = set()
    for _ in range(_POWER_ITERATIONS if len(roles) > 1 else 1):
        for role in roles:
            for variable, places in uses[role].items():
                rows = [_rows(family, given, role, place, starts, started) for place in places]
                starts[variable] = _eigenvectors(rows, starts[variable])
                started.add(variable)
    return starts


def _widest(family: Family) -> tuple[str, tuple[str, ...]]:
    """Return the share and role (A or B) with most places per tensor; both roles if a core joins them."""
    plan = family.plan
    places = Counter[tuple[str, str]]()
    unfit: set[tuple[str, str]] = set()
    tensors: dict[tuple[str, str], set[Variable]] = {}
    cores: set[str] = set()
    for site in plan.sites:
        widths = {"A": site.d_in, "B": site.d_out}
        for term in plan.terms_of[site.path]:
            trains = {r for r, name in term.tensors.items() if plan.tensor[name].trainable}
            cores |= {term.share} if trains - {*_ROLES} else set()
            for role in _ROLES:
                name = term.tensors.get(role)
                fits = name and role in trains and plan.tensor[name].shape[1] == widths[role]
                if not fits or not term.linear:
                    unfit.add((term.share, role))
                    continue
                places[term.share, role] += len(family.names)
                for adapter in family.names:
                    variable = family.variable(adapter, str(name))
                    tensors.setdefault((term.share, role), set()).add(variable)
    width = {key: count / len(tensors[key]) for key, count in places.items() if key not in unfit}
    if not width:
        return "", ()
    share, role = max(width, key=lambda key: width[key])
    both = share in cores and all((share, role) in width for role in _ROLES)
    return share, _ROLES if both else (role,)


def _rows(
    family: Family,
    given: GivenPairs,
    role: str,
    place: tuple[str, Site, Term],
    values: Values,
    started: set[Variable],
) -> Tensor:
    """Return rows ``R`` with ``R^T R = dW^T P dW`` (A) or ``dW P dW^T`` (B). P projects onto the span of
    the other factor, once that is initialised.
    """
    name, site, term = place
    a, b = (factor[0] for factor in given.stacked([(name, site)]))
    factor, other = (a, b) if role == "A" else (b, a)
    opposite = term.tensors.get("B" if role == "A" else "A")
    if opposite and (variable := family.variable(name, opposite)) in started:
        other = other @ values[variable].t()
    triangle: Tensor = torch.linalg.qr(other.t(), mode="r").R
    return triangle @ factor


def _eigenvectors(rows: list[Tensor], start: Tensor) -> Tensor:
    """Replace a tensor's first rows by the leading right singular vectors of all rows, orthonormal."""
    vectors = _leading_of(torch.cat(rows), len(start))
    return torch.cat([vectors, start[len(vectors) :]])


def _leading_of(rows: Tensor, count: int) -> Tensor:
    if min(rows.shape) <= _DIRECT_WIDTH:
        gram = rows.t() @ rows if rows.shape[0] >= rows.shape[1] else rows @ rows.t()
        values, vectors = torch.linalg.eigh(gram)
        largest = list(_falling(values, count))
        directions: Tensor = vectors[:, largest].t()
        if rows.shape[0] < rows.shape[1]:
            directions = torch.nn.functional.normalize(directions @ rows, dim=1)
        return directions
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        _, _, right = torch.svd_lowrank(rows, min(*rows.shape, count + 16), 4)
    leading: Tensor = right.t()[:count]
    return leading


_DIRECT_WIDTH = 2048
"""The largest number of rows or columns for which eigenvectors are computed directly."""


def _falling(values: Tensor, count: int) -> Iterator[int]:
    """Yield the indices of the largest nonzero eigenvalues."""
    least = 1e-14 * float(values[-1]) if len(values) else 0.0
    for i in range(len(values) - 1, max(len(values) - 1 - count, -1), -1):
        if float(values[i]) > least:
            yield i
