"""Measure what common factors would keep of an adapter's updates, beside chance.

If the modules of a group share one A of rank r, and each has a private B, A keeps at most the r largest
eigenvalues of ``sum dW_i^T dW_i``. One common B keeps those of ``sum dW_i dW_i^T``. Chance is the same for
independent updates with the same singular values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bishare_dsl.convert.effective import check_linear, effective_factors, finite_factors
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes.analyse import NOTHING_ADDED
from bishare_dsl.fit.start import spread
from bishare_dsl.initial.values import draw
from bishare_dsl.models.site import Site
from bishare_dsl.show.table import Table
from bishare_dsl.spec import SINGULAR

if TYPE_CHECKING:
    from bishare_dsl.folder.contents import StoredAdapter

KEYS: Mapping[str, Callable[[Site], object]] = {
    "layer": lambda site: site.layer,
    "layer // 4": lambda site: site.layer if site.layer is None else site.layer // 4,
    "kind": lambda site: site.kind,
    "parent": lambda site: site.parent,
    "model": lambda site: "",
}
"""Keys of the language that are compared. Modules of a group also have one width."""

_LEAST_COSINE = 0.02
"""If the cosine of an adapter's tensors and its initial values is below this, they are unrelated."""

Rows = dict[Site, Tensor]
"""By site, rows ``R`` of its update: ``R^T R`` is ``dW^T dW`` for A, ``dW dW^T`` for B."""


@dataclass(frozen=True)
class Shared:
    """The part of the squared norm of all updates that one factor per group keeps, and keeps by chance."""

    key: str
    role: str
    groups: int
    modules: int
    kept: float
    chance: float

    @property
    def gain(self) -> float:
        """The excess over chance."""
        return self.kept - self.chance


def analyse(stored: StoredAdapter, *, seed: int = 0) -> list[Shared]:
    """Measure an adapter, with common factors of the commonest rank of its modules.

    Args:
        stored: the adapter.
        seed: for the random directions of chance.

    Raises:
        AdapterError: an update is not a matrix (BS633) or not finite (BS628, BS694), or all are zero (BS850).
    """
    rows = read_rows(stored)
    rank = Counter(len(r) for r in rows["A"].values()).most_common(1)[0][0]
    random = torch.Generator().manual_seed(seed)
    measured = []
    for role, given in rows.items():
        by_chance = {site: _independent(r, random) for site, r in given.items()}
        for key, value in KEYS.items():
            groups: dict[object, list[Site]] = {}
            for site in given:
                width = site.d_in if role == "A" else site.d_out
                groups.setdefault((value(site), width), []).append(site)
            kept = (_kept(of, groups.values(), rank) for of in (given, by_chance))
            largest = max(map(len, groups.values()))
            measured.append(Shared(key, role, len(groups), largest, *kept))
    return measured


def read_rows(stored: StoredAdapter) -> dict[str, Rows]:
    """Return the rows of an adapter's updates for A and B, at each module with an update.

    If the tensors still resemble the initial values that their seed gives, A is its change since then:
    unrelated initial values would hide what training made similar.
    """
    plan, tensors = stored.plan, stored.tensors()
    check_linear(plan.terms, "analyse the adapter")
    starts = {}
    if not any(tensor.init in SINGULAR for tensor in plan.tensors):
        starts = draw(plan, stored.config.seed)
    known = _cosine(starts, tensors) > _LEAST_COSINE
    rows: dict[str, Rows] = {"A": {}, "B": {}}
    for site in plan.sites:
        a, b = finite_factors(plan, tensors, site, "analysing")
        if (change := spread(a, b, "B")).any():
            rows["B"][site] = change
            moved = a - effective_factors(plan, starts, site)[0] if known else a
            rows["A"][site] = spread(moved if moved.any() else a, b, "A")
    if not rows["B"]:
        raise AdapterError(NOTHING_ADDED(folder=stored.folder))
    return rows


def table(analyses: Sequence[Sequence[Shared]]) -> Table:
    """Return the table of several adapters: averages, and the smallest excess over chance of any of them."""
    lines = []
    for same in sorted(zip(*analyses, strict=True), key=lambda same: -fmean(s.gain for s in same)):
        kept, chance = (
            fmean(parts) for parts in zip(*((s.kept, s.chance) for s in same), strict=True)
        )
        gains = [f"{100 * (kept - chance):+.1f}", f"{100 * min(s.gain for s in same):+.1f}"]
        first = same[0]
        counts = [first.groups, first.modules]
        lines.append([first.key, first.role, *counts, f"{kept:.1%}", f"{chance:.1%}", *gains])
    head = ["per", "shared", "groups", "modules each", "kept", "by chance", "above", "least above"]
    return Table(head, lines, frozenset({0, 1}))


def _kept(rows: Rows, groups: Iterable[list[Site]], rank: int) -> float:
    kept = whole = 0.0
    for sites in groups:
        squares = torch.linalg.svdvals(torch.cat([rows[site] for site in sites])).square()
        kept, whole = kept + float(squares[:rank].sum()), whole + float(squares.sum())
    return kept / whole


def _independent(rows: Tensor, random: torch.Generator) -> Tensor:
    """Return rows with the same singular values and random directions."""
    values = torch.linalg.svdvals(rows)
    basis = torch.linalg.qr(torch.randn(rows.shape[1], len(values), generator=random)).Q
    drawn: Tensor = values[:, None] * basis.t()
    return drawn


def _cosine(starts: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> float:
    begun = [name for name, start in starts.items() if start.any()]
    if not begun:
        return 0.0
    one, other = (torch.cat([t[name].flatten() for name in begun]) for t in (starts, tensors))
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))
