"""Heat maps: the measures of pairs, folded to modules of a layer, layers of a kind, and adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from bishare_dsl.models.site import Site, layers_of
from bishare_dsl.show.picture import split_path


class _AtSite(Protocol):
    @property
    def site(self) -> Site: ...


_Thing = TypeVar("_Thing", bound=_AtSite)
Likeness = Callable[[Sequence[_Thing]], dict[str, torch.Tensor]]
"""Gives each measure of each two things, (n, n)."""

LAYER, ACROSS, ADAPTERS = "modules of a layer", "across layers", "adapters"


@dataclass(frozen=True)
class Map:
    """One measure of each two of some things: a mean over the groups that they were compared in.

    Attributes:
        measure: which.
        title: what is compared: ``modules of a layer``, ``q_proj across layers`` or ``adapters``.
        labels: the names of the things.
        values: (n, n), NaN where two cannot be compared.
    """

    measure: str
    title: str
    labels: tuple[str, ...]
    values: torch.Tensor

    @property
    def mean(self) -> float | None:
        """The mean over pairs of different things; None where no two can be compared."""
        off = ~torch.eye(len(self.labels), dtype=torch.bool) & self.values.isfinite()
        return float(self.values[off].mean()) if off.any() else None


def maps(things: Sequence[_Thing], likeness: Likeness[_Thing]) -> list[Map]:
    """Compare the modules of each layer, and the layers of each kind."""
    rows = {row: i for i, row in enumerate(dict.fromkeys(_row(thing) for thing in things))}
    layers: dict[tuple[str, int | None], list[_Thing]] = {}
    for thing in things:
        layers.setdefault((split_path(thing.site.path)[0], thing.site.layer), []).append(thing)
    placed = ([(rows[_row(thing)], thing) for thing in group] for group in layers.values())
    found = fold(placed, LAYER, tuple(rows), likeness)
    kinds: dict[str, dict[str, list[_Thing]]] = {}
    for thing in things:
        inner = kinds.setdefault(thing.site.kind, {})
        inner.setdefault(".".join(split_path(thing.site.path)), []).append(thing)
    for kind, groups in kinds.items():
        numbers = layers_of(thing.site for group in groups.values() for thing in group)
        if len(numbers) < 2:
            continue
        index = {layer: i for i, layer in enumerate(numbers)}
        placed = ([(index[t.site.layer], t) for t in group] for group in groups.values())
        found += fold(placed, f"{kind} {ACROSS}", tuple(map(str, numbers)), likeness)
    return found


def fold(
    groups: Iterable[Sequence[tuple[int, _Thing]]],
    title: str,
    labels: tuple[str, ...],
    likeness: Likeness[_Thing],
) -> list[Map]:
    """Compare the things of each group, and give the mean over groups.

    Args:
        groups: things, each with the index of its label.
        title: of the maps.
        labels: of the things.
        likeness: compares the things of a group.
    """
    n = len(labels)
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, torch.Tensor] = {}
    for group in groups:
        index = torch.tensor([i for i, _ in group])
        for name, values in likeness([thing for _, thing in group]).items():
            total = sums.setdefault(name, torch.zeros(n, n, dtype=torch.float64))
            count = counts.setdefault(name, torch.zeros(n, n, dtype=torch.float64))
            known = values.isfinite()
            total[index[:, None], index] += values.where(known, 0)
            count[index[:, None], index] += known
    return [Map(name, title, labels, sums[name] / counts[name]) for name in sums]


def _row(thing: _AtSite) -> str:
    return split_path(thing.site.path)[1]
