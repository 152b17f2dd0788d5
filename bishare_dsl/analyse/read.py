"""Compute the updates of an adapter that was read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from bishare_dsl.adapter.initial import draw
from bishare_dsl.analyse.update import Factored, Update
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import analyse as codes
from bishare_dsl.export.effective import check_linear, effective_factors, finite_factors
from bishare_dsl.models.site import Site
from bishare_dsl.plan import Plan
from bishare_dsl.plan.names import without_start
from bishare_dsl.spec import SINGULAR

if TYPE_CHECKING:
    from bishare_dsl.adapter.contents import StoredAdapter

_LEAST_COSINE = 0.02
"""If the cosine of a tensor and its initial values is below this, training has hidden them."""


@dataclass(frozen=True)
class AdapterUpdates:
    """An adapter as its updates.

    Attributes:
        name: its name in the results.
        plan: its plan.
        updates: one for each module with a non-zero update.
        parts: the Frobenius norm of each share's term, by module and share.
        starts_known: whether ``trained`` of an update excludes the initial values of A.
    """

    name: str
    plan: Plan
    updates: tuple[Update, ...]
    parts: Mapping[str, Mapping[str, float]]
    starts_known: bool


def read_updates(name: str, stored: StoredAdapter) -> AdapterUpdates:
    """Compute the updates of an adapter, module by module.

    Args:
        name: for the results.
        stored: the adapter.

    Raises:
        AdapterError: an update is not a matrix (BS633) or not finite (BS628, BS694), or all updates are zero
            (BS850).
        SpecError: a package's transform fails (BS214).
    """
    plan, tensors = stored.plan, stored.tensors()
    check_linear(plan.terms, "analyse the adapter")
    of_base = any(tensor.init in SINGULAR for tensor in plan.tensors)
    starts = {} if of_base else draw(plan, stored.config.seed)
    starts_known = _started_as(starts, tensors)
    updates: list[Update] = []
    parts: dict[str, dict[str, float]] = {}
    for site in (site for site in plan.sites if plan.rows(site.path)):
        down, up = finite_factors(plan, tensors, site, "analysing")
        if starts_known:
            start = effective_factors(plan, starts, site)
            update = _change(site, (down, up), start)
        else:
            whole = Factored.of(down, up)
            update = Update(site, whole, whole)
        if update.whole.rank:
            updates.append(update)
            parts[site.path] = _parts(plan, site, down, up)
    if not updates:
        raise AdapterError(codes.NOTHING_ADDED(folder=stored.folder))
    return AdapterUpdates(name, plan, tuple(updates), parts, starts_known)


def _started_as(starts: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> bool:
    """Return whether training began with these initial values, which an imported adapter did not.

    Trained tensors still resemble their initial values; the cosine of unrelated numbers is about ``1 /
    sqrt(n)``.
    """
    product = squares = start_squares = 0.0
    entries = 0
    for name, start in starts.items():
        if start.any():
            now = tensors[name].double()
            product += float((now * start).sum())
            squares += float(now.square().sum())
            start_squares += float(start.double().square().sum())
            entries += start.numel()
    norms = math.sqrt(squares * start_squares)
    return norms > 0 and product / norms > max(5 / math.sqrt(entries), _LEAST_COSINE)


def _change(
    site: Site,
    now: tuple[torch.Tensor, torch.Tensor],
    start: tuple[torch.Tensor, torch.Tensor],
) -> Update:
    (down, up), (down_start, up_start) = now, start
    if up_start.any() and down_start.any():  # The model did not start equal to its base.
        whole = Factored.of(torch.cat([down, down_start]), torch.cat([up, -up_start]))
    else:
        whole = Factored.of(down, up)
    trained = Factored.of(down - down_start, up)
    # A frozen A keeps its initial values, which modules may share.
    return Update(site, whole, trained if trained.rank else whole)


def _parts(plan: Plan, site: Site, down: torch.Tensor, up: torch.Tensor) -> dict[str, float]:
    """Return the Frobenius norm of each share's term, whose rows are consecutive in the factors."""
    rows: dict[str, list[int]] = {}
    first = 0
    for term in plan.terms_of[site.path]:
        rows.setdefault(without_start(term.share), []).extend(range(first, first + term.rows))
        first += term.rows
    norms = {}
    for share, span in rows.items():
        a, b = down[span].double(), up[span].double()
        norms[share] = float(((b @ b.t()) * (a @ a.t())).sum().clamp(min=0).sqrt())
    return norms
