"""Measure adapters, and compare every measure with chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from bishare_dsl.analyse import energy, ranks
from bishare_dsl.analyse.maps import ADAPTERS, Map, fold, maps
from bishare_dsl.analyse.read import AdapterUpdates
from bishare_dsl.analyse.update import Update

RANKS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class JointRow:
    """The joint energy of a common factor at the rank of the analysis, compared with chance."""

    joint: energy.Joint
    kept: float
    chance: float

    @property
    def gain(self) -> float:
        """The excess over chance."""
        return self.kept - self.chance


@dataclass(frozen=True)
class Analysis:
    """The measures of one adapter.

    Attributes:
        adapter: its updates.
        rank: the rank of the joint energies, which is the most common rank of an update.
        charts: similarities of modules.
        joint: the energy that common factors keep.
        modules: ranks and contributions by module.
    """

    adapter: AdapterUpdates
    rank: int
    charts: tuple[Map, ...]
    joint: tuple[JointRow, ...]
    modules: tuple[ranks.ModuleRow, ...]


def analyse(adapter: AdapterUpdates, *, seed: int = 0) -> Analysis:
    """Measure an adapter, and independent updates with the same singular values and random vectors.

    Args:
        adapter: to measure.
        seed: for the random vectors.
    """
    ranks_of = [update.whole.rank for update in adapter.updates]
    rank = max(set(ranks_of), key=lambda rank: (ranks_of.count(rank), rank))  # The most common.
    wanted = sorted({*RANKS, rank})
    looks = (adapter.updates, independent(adapter.updates, seed))
    joint = (energy.joint(updates, adapter.plan.base, wanted) for updates in looks)
    rows = [
        JointRow(row, row.kept[rank], chance.kept[rank]) for row, chance in zip(*joint, strict=True)
    ]
    return Analysis(
        adapter=adapter,
        rank=rank,
        charts=_charts(*map(maps, looks)),
        joint=tuple(rows),
        modules=tuple(ranks.modules(adapter)),
    )


def compare_adapters(adapters: Sequence[AdapterUpdates], *, seed: int = 0) -> tuple[Map, ...]:
    """Compare adapters at the modules that at least two of them update."""
    names = tuple(adapter.name for adapter in adapters)
    updates_at: dict[str, list[tuple[int, Update]]] = {}
    chance: dict[str, list[tuple[int, Update]]] = {}
    for i, adapter in enumerate(adapters):
        drawn = independent(adapter.updates, seed + i)
        for update, other in zip(adapter.updates, drawn, strict=True):
            updates_at.setdefault(update.site.path, []).append((i, update))
            chance.setdefault(update.site.path, []).append((i, other))
    seen = (fold(groups.values(), ADAPTERS, names) for groups in (updates_at, chance))
    return _charts(*seen)


def independent(updates: Sequence[Update], seed: int) -> tuple[Update, ...]:
    """Return updates with the same singular values and random singular vectors."""
    random = torch.Generator().manual_seed(seed)
    return tuple(update.independent(random) for update in updates)


def _charts(seen: Sequence[Map], by_chance: Sequence[Map]) -> tuple[Map, ...]:
    pairs = zip(seen, by_chance, strict=True)
    return tuple(replace(chart, chance=chance.mean) for chart, chance in pairs)
