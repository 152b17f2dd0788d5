"""Heat maps: the measures of pairs, folded to modules of a layer, layers of a kind, and adapters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from bishare_dsl.analyse.similarity import similarity
from bishare_dsl.analyse.update import Update
from bishare_dsl.models.site import layers_of
from bishare_dsl.show.picture import split_path

LAYER, ACROSS, ADAPTERS = "modules of a layer", "across layers", "adapters"


@dataclass(frozen=True)
class Map:
    """One measure of each two of some things: a mean over the groups that they were compared in.

    Attributes:
        measure: which.
        title: what is compared: ``modules of a layer``, ``q_proj across layers`` or ``adapters``.
        labels: the names of the things.
        values: (n, n), NaN where two cannot be compared.
        chance: the mean that chance gives; None where no two can be compared.
    """

    measure: str
    title: str
    labels: tuple[str, ...]
    values: torch.Tensor
    chance: float | None = None

    @property
    def mean(self) -> float | None:
        """The mean over pairs of different things; None where no two can be compared."""
        off = ~torch.eye(len(self.labels), dtype=torch.bool) & self.values.isfinite()
        return float(self.values[off].mean()) if off.any() else None


def shown(value: float | None) -> str:
    """Write a mean."""
    return "-" if value is None else f"{value:.3f}"


def maps(updates: Sequence[Update]) -> list[Map]:
    """Compare the modules of each layer, and the layers of each kind."""
    rows = {row: i for i, row in enumerate(dict.fromkeys(_row(update) for update in updates))}
    layers: dict[tuple[str, int | None], list[Update]] = {}
    for update in updates:
        layers.setdefault((split_path(update.site.path)[0], update.site.layer), []).append(update)
    placed = ([(rows[_row(update)], update) for update in group] for group in layers.values())
    found = fold(placed, LAYER, tuple(rows))
    kinds: dict[str, dict[str, list[Update]]] = {}
    for update in updates:
        inner = kinds.setdefault(update.site.kind, {})
        inner.setdefault(".".join(split_path(update.site.path)), []).append(update)
    for kind, groups in kinds.items():
        numbers = layers_of(update.site for group in groups.values() for update in group)
        if len(numbers) < 2:
            continue
        index = {layer: i for i, layer in enumerate(numbers)}
        placed = ([(index[u.site.layer], u) for u in group] for group in groups.values())
        found += fold(placed, f"{kind} {ACROSS}", tuple(map(str, numbers)))
    return found


def fold(
    groups: Iterable[Sequence[tuple[int, Update]]], title: str, labels: tuple[str, ...]
) -> list[Map]:
    """Compare the updates of each group, and give the mean over groups.

    Args:
        groups: updates, each with the index of its label.
        title: of the maps.
        labels: of what the updates stand for.
    """
    n = len(labels)
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, torch.Tensor] = {}
    for group in groups:
        index = torch.tensor([i for i, _ in group])
        for name, values in similarity([update for _, update in group]).items():
            total = sums.setdefault(name, torch.zeros(n, n, dtype=torch.float64))
            count = counts.setdefault(name, torch.zeros(n, n, dtype=torch.float64))
            known = values.isfinite()
            total[index[:, None], index] += values.where(known, 0)
            count[index[:, None], index] += known
    return [Map(name, title, labels, sums[name] / counts[name]) for name in sums]


def _row(update: Update) -> str:
    return split_path(update.site.path)[1]
