"""Say where modules are: their kinds, their layers and their experts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import TypeAlias

from bishare_dsl.models.site import runs_of
from bishare_dsl.plan import Plan


@dataclass(frozen=True)
class Position:
    """Where a module of a kind is: its layer and its expert, None if it has none."""

    layer: int | None
    expert: int | None


@dataclass(frozen=True)
class _Grid:
    """Layers, each of which has each of some experts."""

    layers: frozenset[int | None]
    experts: frozenset[int | None]


ByKind: TypeAlias = Mapping[str, set[Position]]
"""Positions of modules by their kind."""


def spans(numbers: Iterable[int | None]) -> str:
    """Write whole numbers as runs: ``0-3, 5``."""
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs_of(numbers))


class Places:
    """The kind, the layer and the expert of each module of a plan's model, by its path."""

    def __init__(self, plan: Plan) -> None:
        sites = plan.base.every_site
        parents = defaultdict(set)
        for site in sites:
            parents[site.tower, site.kind].add(site.parent)
        self._kind_of: dict[str, str] = {}
        self._position_of: dict[str, Position] = {}
        for site in sites:
            # Named after its parent and its tower if these tell kinds apart.
            kind = site.kind
            if len(parents[site.tower, site.kind]) > 1:
                kind = f"{site.parent}.{kind}"
            if site.tower != "main":
                kind = f"{site.tower} {kind}"
            self._kind_of[site.path] = kind
            self._position_of[site.path] = Position(site.layer, site.expert)
        self.targets = self.by_kind(site.path for site in plan.sites)

    def by_kind(self, paths: Iterable[str]) -> ByKind:
        """Collect the layers and experts of each kind."""
        positions = defaultdict(set)
        for path in paths:
            positions[self._kind_of[path]].add(self._position_of[path])
        return positions

    def describe(self, paths: Iterable[str], among: ByKind) -> str:
        """Say where modules are: ``q_proj of layers 0-3``.

        Kinds, layers and experts that all of ``among`` have are left out, where no other part could be meant
        by what is said of one. Without these, a long list of all targets is ``all targets``.
        """
        positions = self.by_kind(paths)
        if positions == among:
            return ""
        kinds_of: dict[_Grid, list[str]] = defaultdict(list)
        for kind, of_kind in positions.items():
            for grid in _grids(of_kind):
                kinds_of[grid].append(kind)
        several = len(kinds_of) > 1
        is_part = any(among.get(kind, of_kind) != of_kind for kind, of_kind in positions.items())
        parts = []
        for grid, kinds in kinds_of.items():
            words = []
            if several or set(kinds) != set(among):
                words.append(self._name(kinds, among))
            # What those of `among` have that is left out.
            experts = [{one.expert for one in among.get(kind, ())} for kind in kinds]
            layers = [{one.layer for one in among.get(kind, ())} for kind in kinds]
            if _differs(grid.experts, experts):
                words.append(_numbered("expert", grid.experts, experts))
            if _differs(grid.layers, layers):
                words.append(_numbered("layer", grid.layers, layers))
            elif several and is_part and grid.layers != {None}:
                words.append("all layers")
            parts.append(" of ".join(words))
        return " and ".join(parts)

    def _name(self, kinds: list[str], among: ByKind) -> str:
        if not among and len(kinds) > 2 and len(kinds) == len(self.targets):
            return "all targets"
        return ", ".join(kinds)


def _differs(numbers: Set[int | None], among: list[set[int | None]]) -> bool:
    """Return whether layers or experts are not those of each kind, and there are some to speak of."""
    if all(numbers == of_kind for of_kind in among):
        return False
    return numbers != {None} or any(among)


def _numbered(what: str, numbers: Set[int | None], among: list[set[int | None]]) -> str:
    """Write ``layers 1-3 (0 is left out)``: who counts from 1 may not have meant that."""
    if len(numbers) > 1:
        what += "s"
    text = f"{what} {spans(numbers) or 'none'}"
    if {1, 2} <= numbers and 0 in among[0] - numbers:
        text += " (0 is left out)"
    return text


def _grids(positions: Iterable[Position]) -> Iterator[_Grid]:
    """Split positions into layers and experts such that each of these layers has each of these experts."""
    experts: dict[int | None, set[int | None]] = defaultdict(set)
    for position in positions:
        experts[position.layer].add(position.expert)
    layers: dict[tuple[bool, frozenset[int | None]], set[int | None]] = defaultdict(set)
    for layer, of_layer in experts.items():
        layers[layer is None, frozenset(of_layer)].add(layer)
    for (_, of_layers), numbers in layers.items():
        yield _Grid(frozenset(numbers), of_layers)
