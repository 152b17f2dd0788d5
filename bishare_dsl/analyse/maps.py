"""Average the measures of pairs into heat maps of modules, layers and adapters."""

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
    """One measure for every pair of items, averaged over the groups in which they were compared.

    Attributes:
        measure: its name.
        title: ``modules of a layer``, ``q_proj across layers`` or ``adapters``.
        labels: names of the items.
        values: (n, n), NaN for pairs that cannot be compared.
        chance: the mean by chance, or None if no pair can be compared.
    """

    measure: str
    title: str
    labels: tuple[str, ...]
    values: torch.Tensor
    chance: float | None = None

    @property
    def mean(self) -> float | None:
        """The mean over pairs of different items, or None if no pair can be compared."""
        off = ~torch.eye(len(self.labels), dtype=torch.bool) & self.values.isfinite()
        return float(self.values[off].mean()) if off.any() else None


def shown(value: float | None) -> str:
    """Write a mean, or a dash."""
    return "-" if value is None else f"{value:.3f}"


def maps(updates: Sequence[Update]) -> list[Map]:
    """Compare the modules of each layer, and the layers of each kind."""
    rows = {row: i for i, row in enumerate(dict.fromkeys(_row(update) for update in updates))}
    layers: dict[tuple[str, int | None], list[Update]] = {}
    for update in updates:
        layers.setdefault((split_path(update.site.path)[0], update.site.layer), []).append(update)
    placed = ([(rows[_row(update)], update) for update in group] for group in layers.values())
    charts = fold(placed, LAYER, tuple(rows))
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
        charts += fold(placed, f"{kind} {ACROSS}", tuple(map(str, numbers)))
    return charts


def fold(
    groups: Iterable[Sequence[tuple[int, Update]]], title: str, labels: tuple[str, ...]
) -> list[Map]:
    """Compare the updates of each group, and average over the groups.

    Args:
        groups: updates, each with the index of its label.
        title: of the maps.
        labels: of the rows and columns.
    """
    n = len(labels)
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, torch.Tensor] = {}
    for group in groups:
        index = torch.tensor([i for i, _ in group])
        for name, values in similarity([update for _, update in group]).items():
            total = sums.setdefault(name, torch.zeros(n, n, dtype=torch.float64))
            count = counts.setdefault(name, torch.zeros(n, n, dtype=torch.float64))
            finite = values.isfinite()
            total[index[:, None], index] += values.where(finite, 0)
            count[index[:, None], index] += finite
    return [Map(name, title, labels, sums[name] / counts[name]) for name in sums]


def _row(update: Update) -> str:
    return split_path(update.site.path)[1]
