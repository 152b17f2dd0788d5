"""All that is measured of adapters, each measure beside what chance gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from bishare_dsl.analyse import energy, ranks
from bishare_dsl.analyse.keys import Grouping
from bishare_dsl.analyse.maps import ADAPTERS, Map, fold, maps
from bishare_dsl.analyse.progress import Watch, no_progress
from bishare_dsl.analyse.read import AdapterUpdates
from bishare_dsl.analyse.update import Update
from bishare_dsl.analyse.worth import Worth

ADAPTER, INDEPENDENT, PERMUTED = "adapter", "independent", "permuted"
NULLS = (INDEPENDENT, PERMUTED)
LOOKS = (ADAPTER, *NULLS)
"""The adapter as it is; and two that chance makes of it: updates of the same singular values whose vectors
are drawn anew, as independent starts are; and the same updates with inputs and outputs in a random order."""
RANKS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Chart:
    """A map beside the means that chance gives, by null."""

    map: Map
    chance: Mapping[str, float | None]


@dataclass(frozen=True)
class JointRow:
    """Joint energy beside that of chance, by null, at the rank of the analysis."""

    joint: energy.Joint
    kept: float
    chance: Mapping[str, float]


@dataclass(frozen=True)
class Analysis:
    """All that is measured of one adapter.

    Attributes:
        adapter: which.
        rank: at which joint energy is given: the most common rank of an update.
        charts: how alike modules are.
        joint: what common factors keep.
        modules: ranks and contributions by module.
        forms: how each share makes its A.
        worth: what shares are worth on data, where there were some.
    """

    adapter: AdapterUpdates
    rank: int
    charts: tuple[Chart, ...]
    joint: tuple[JointRow, ...]
    modules: tuple[ranks.ModuleRow, ...]
    forms: tuple[ranks.Form, ...]
    worth: Worth | None = None


def analyse(
    adapter: AdapterUpdates, *, rank: int | None = None, seed: int = 0, watch: Watch = no_progress
) -> Analysis:
    """Measure an adapter.

    Args:
        adapter: to measure.
        rank: at which joint energy is given.
        seed: of the nulls.
        watch: goes over the looks: at the adapter, and at the two nulls.
    """
    grouping = Grouping(adapter.plan.base, [update.site for update in adapter.updates])
    rank = rank or _usual([update.whole.rank for update in adapter.updates])
    wanted = sorted({*RANKS, rank})
    seen: dict[str, list[Map]] = {}
    joint: dict[str, list[energy.Joint]] = {}
    for look in watch(LOOKS, f"measuring {adapter.name}"):
        updates = apply_null(look, adapter.updates, seed)
        seen[look] = maps(updates)
        joint[look] = energy.joint(updates, grouping, wanted)
    rows = [
        JointRow(
            own,
            own.kept[rank],
            {INDEPENDENT: independent.kept[rank], PERMUTED: permuted.kept[rank]},
        )
        for own, independent, permuted in zip(*(joint[look] for look in LOOKS), strict=True)
    ]
    return Analysis(
        adapter=adapter,
        rank=rank,
        charts=_charts(seen),
        joint=tuple(rows),
        modules=tuple(ranks.modules(adapter)),
        forms=tuple(ranks.forms(adapter.plan)),
    )


def compare_adapters(adapters: Sequence[AdapterUpdates], *, seed: int = 0) -> tuple[Chart, ...]:
    """Compare adapters at the modules that two or more of them add something to."""
    names = tuple(adapter.name for adapter in adapters)
    seen = {}
    for look in LOOKS:
        groups: dict[str, list[tuple[int, Update]]] = {}
        for i, adapter in enumerate(adapters):
            for update in apply_null(look, adapter.updates, seed + i):
                groups.setdefault(update.site.path, []).append((i, update))
        seen[look] = fold(groups.values(), ADAPTERS, names)
    return _charts(seen)


def apply_null(look: str, updates: Sequence[Update], seed: int) -> Sequence[Update]:
    """Return the updates as they are, or what chance makes of them."""
    random = torch.Generator().manual_seed(seed)
    match look:
        case "independent":
            return [update.independent(random) for update in updates]
        case "permuted":
            return [update.permuted(random) for update in updates]
        case _:
            return updates


def _charts(seen: Mapping[str, Sequence[Map]]) -> tuple[Chart, ...]:
    return tuple(
        Chart(own, {INDEPENDENT: independent.mean, PERMUTED: permuted.mean})
        for own, independent, permuted in zip(*(seen[look] for look in LOOKS), strict=True)
    )


def _usual(numbers: Sequence[int]) -> int:
    """Return the most common number; of several the largest."""
    return max(set(numbers), key=lambda number: (numbers.count(number), number))
