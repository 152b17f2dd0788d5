"""Compute the rank of each update and the contribution of each share (the paper's Figure 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bishare_dsl.analyse.read import AdapterUpdates


@dataclass(frozen=True)
class ModuleRow:
    """One module: the numerical rank of its update, its stable rank ``|dW|^2 / sigma_1^2`` and its norm.

    The part of a share is the norm of its term over the sum of the norms of all terms.
    """

    path: str
    layer: int | None
    kind: str
    rank: int
    stable_rank: float
    norm: float
    parts: Mapping[str, float]


@dataclass(frozen=True)
class KindRow:
    """Averages over the modules of a kind."""

    kind: str
    modules: int
    rank: float
    stable_rank: float
    parts: Mapping[str, float]


def modules(adapter: AdapterUpdates) -> list[ModuleRow]:
    """Make a row for each module that an adapter updates."""
    rows = []
    for update in adapter.updates:
        norms = adapter.parts[update.site.path]
        total = sum(norms.values())
        rows.append(
            ModuleRow(
                path=update.site.path,
                layer=update.site.layer,
                kind=update.site.kind,
                rank=update.whole.rank,
                stable_rank=update.whole.stable_rank,
                norm=update.whole.energy**0.5,
                parts={share: norm / total for share, norm in norms.items()} if total else {},
            )
        )
    return rows


def kinds(rows: Sequence[ModuleRow]) -> list[KindRow]:
    """Average by kind, in the model's order, and over all modules at the end."""
    groups: dict[str, list[ModuleRow]] = {}
    for row in rows:
        groups.setdefault(row.kind, []).append(row)
    return [_mean(kind, group) for kind, group in [*groups.items(), ("all", list(rows))]]


def _mean(kind: str, rows: Sequence[ModuleRow]) -> KindRow:
    n = len(rows)
    shares = dict.fromkeys(share for row in rows for share in row.parts)
    return KindRow(
        kind=kind,
        modules=n,
        rank=sum(row.rank for row in rows) / n,
        stable_rank=sum(row.stable_rank for row in rows) / n,
        parts={share: sum(row.parts.get(share, 0.0) for row in rows) / n for share in shares},
    )
