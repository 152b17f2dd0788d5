"""All that is measured of adapters, each measure beside what chance gives."""

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
    """Joint energy beside that of chance, at the rank of the analysis."""

    joint: energy.Joint
    kept: float
    chance: float

    @property
    def gain(self) -> float:
        """How much more is kept than by chance."""
        return self.kept - self.chance


@dataclass(frozen=True)
class Analysis:
    """All that is measured of one adapter.

    Attributes:
        adapter: which.
        rank: at which joint energy is given: the most common rank of an update.
        charts: how alike modules are.
        joint: what common factors keep.
        modules: ranks and contributions by module.
    """

    adapter: AdapterUpdates
    rank: int
    charts: tuple[Map, ...]
    joint: tuple[JointRow, ...]
    modules: tuple[ranks.ModuleRow, ...]


def analyse(adapter: AdapterUpdates, *, seed: int = 0) -> Analysis:
    """Measure an adapter, and what chance makes of it: updates of the same singular values whose vectors are
    drawn anew, as independent starts are.

    Args:
        adapter: to measure.
        seed: of the vectors that are drawn.
    """
    own = [update.whole.rank for update in adapter.updates]
    rank = max(set(own), key=lambda rank: (own.count(rank), rank))  # The most common.
    wanted = sorted({*RANKS, rank})
    looks = (adapter.updates, independent(adapter.updates, seed))
    joint = (energy.joint(updates, adapter.plan.base, wanted) for updates in looks)
    rows = [
        JointRow(own, own.kept[rank], chance.kept[rank]) for own, chance in zip(*joint, strict=True)
    ]
    return Analysis(
        adapter=adapter,
        rank=rank,
        charts=_charts(*map(maps, looks)),
        joint=tuple(rows),
        modules=tuple(ranks.modules(adapter)),
    )


def compare_adapters(adapters: Sequence[AdapterUpdates], *, seed: int = 0) -> tuple[Map, ...]:
    """Compare adapters at the modules that two or more of them add something to."""
    names = tuple(adapter.name for adapter in adapters)
    own: dict[str, list[tuple[int, Update]]] = {}
    chance: dict[str, list[tuple[int, Update]]] = {}
    for i, adapter in enumerate(adapters):
        drawn = independent(adapter.updates, seed + i)
        for update, other in zip(adapter.updates, drawn, strict=True):
            own.setdefault(update.site.path, []).append((i, update))
            chance.setdefault(update.site.path, []).append((i, other))
    seen = (fold(groups.values(), ADAPTERS, names) for groups in (own, chance))
    return _charts(*seen)


def independent(updates: Sequence[Update], seed: int) -> tuple[Update, ...]:
    """Return updates of the same singular values, whose vectors are drawn anew."""
    random = torch.Generator().manual_seed(seed)
    return tuple(update.independent(random) for update in updates)


def _charts(seen: Sequence[Map], by_chance: Sequence[Map]) -> tuple[Map, ...]:
    pairs = zip(seen, by_chance, strict=True)
    return tuple(replace(own, chance=chance.mean) for own, chance in pairs)
