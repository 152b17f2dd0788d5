"""Measure what common factors keep of an adapter, compared with chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bishare_dsl.analyse import energy, ranks
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
        joint: the energy that common factors keep.
        modules: ranks and contributions by module.
    """

    adapter: AdapterUpdates
    rank: int
    joint: tuple[JointRow, ...]
    modules: tuple[ranks.ModuleRow, ...]

    def data(self) -> dict[str, Any]:
        """Return the measures as data for JSON."""
        adapter = self.adapter
        joint = [
            {
                "key": row.joint.key,
                "common": row.joint.role,
                "pools": row.joint.pools,
                "modules": row.joint.modules,
                "kept": row.kept,
                "chance": row.chance,
                "kept_by_rank": {str(rank): kept for rank, kept in row.joint.kept.items()},
            }
            for row in self.joint
        ]
        figures = {
            "name": adapter.name,
            "spec": adapter.plan.spec,
            "model": adapter.plan.base.name,
            "starts_known": adapter.starts_known,
            "rank": self.rank,
            "joint": joint,
            "kinds": [asdict(row) for row in ranks.kinds(self.modules)],
            "modules": [asdict(row) for row in self.modules],
        }
        rounded: dict[str, Any] = _rounded(figures)
        return rounded


def analyse(adapter: AdapterUpdates, *, seed: int = 0) -> Analysis:
    """Measure an adapter, and independent updates with the same singular values and random vectors.

    Args:
        adapter: to measure.
        seed: for the random vectors.
    """
    ranks_of = [update.whole.rank for update in adapter.updates]
    rank = max(set(ranks_of), key=lambda rank: (ranks_of.count(rank), rank))  # The most common.
    wanted = sorted({*RANKS, rank})
    measured = (adapter.updates, independent(adapter.updates, seed))
    joint = (energy.joint(updates, adapter.plan.base, wanted) for updates in measured)
    rows = [
        JointRow(row, row.kept[rank], chance.kept[rank]) for row, chance in zip(*joint, strict=True)
    ]
    return Analysis(adapter, rank, tuple(rows), tuple(ranks.modules(adapter)))


def independent(updates: Sequence[Update], seed: int) -> tuple[Update, ...]:
    """Return updates with the same singular values and random singular vectors."""
    random = torch.Generator().manual_seed(seed)
    return tuple(update.independent(random) for update in updates)


def _rounded(value: Any) -> Any:
    """Round numbers to six digits for JSON; NaN and infinity become None."""
    match value:
        case float():
            return float(f"{value:.6g}") if math.isfinite(value) else None
        case Mapping():
            return {name: _rounded(part) for name, part in value.items()}
        case list() | tuple():
            return [_rounded(part) for part in value]
        case _:
            return value
