"""Say where modules are: their kinds, their layers and their experts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

from bishare_dsl.models.site import runs_of
from bishare_dsl.plan import Plan

ByKind: TypeAlias = Mapping[str, set[tuple[int | None, int | None]]]
"""Pairs of a layer and an expert, by kind of module."""
_Grid: TypeAlias = tuple[frozenset[int | None], frozenset[int | None]]


def spans(numbers: Iterable[int | None]) -> str:
    """Write whole numbers as runs: ``0-3, 5``."""
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs_of(numbers))


class Places:
    """The kind, the layer and the expert of each module of a plan's model, by its path."""

    def __init__(self, plan: Plan) -> None:
        parents, towers = defaultdict(set), [site.tower for site in plan.base.every_site]
        for site, tower in zip(plan.base.every_site, towers, strict=True):
            parents[tower, site.kind].add(site.parent)
        self._of = {}
        for site, tower in zip(plan.base.every_site, towers, strict=True):
            # Named after its parent and its tower if these tell kinds apart.
            alone = len(parents[tower, site.kind]) == 1
            kind = site.kind if alone else f"{site.parent}.{site.kind}"
            kind = kind if tower == "main" else f"{tower} {kind}"
            self._of[site.path] = kind, site.layer, site.expert
        self.targets = self.by_kind(site.path for site in plan.sites)

    def by_kind(self, paths: Iterable[str]) -> ByKind:
        """Collect the layers and experts of each kind."""
        found = defaultdict(set)
        for kind, layer, expert in map(self._of.__getitem__, paths):
            found[kind].add((layer, expert))
        return found

    def said(self, paths: Iterable[str], among: ByKind) -> str:
        """Say where modules are: ``q_proj of layers 0-3``.

        Kinds, layers and experts that all of ``among`` have are left out, where no other part could be meant
        by what is said of one. Without these, a long list of all targets is ``all targets``.
        """
        here, parts, kinds_of = self.by_kind(paths), list[str](), defaultdict(list)
        if here == among:
            return ""
        for kind, pairs in here.items():
            for where in _grids(pairs):
                kinds_of[where].append(kind)
        narrow = len(kinds_of) > 1 and any(among.get(kind, p) != p for kind, p in here.items())
        for where, kinds in kinds_of.items():
            all_targets = not among and 2 < len(kinds) == len(self.targets)
            words = ["all targets" if all_targets else ", ".join(kinds)]
            words *= len(kinds_of) > 1 or {*kinds} != {*among}
            for i, what in (1, "expert"), (0, "layer"):
                numbers = where[i]
                every = [{one[i] for one in among.get(kind, ())} for kind in kinds]
                if any(numbers != one for one in every) and (numbers != {None} or any(every)):
                    counted = " (0 is left out)" * ({1, 2} <= numbers and 0 in every[0] - numbers)
                    told = f"{what}{'s' * (len(numbers) > 1)} {spans(numbers) or 'none'}"
                    words.append(f"{told}{counted}")
                elif narrow and what == "layer" and numbers != {None}:
                    words.append("all layers")
            parts.append(" of ".join(words))
        return " and ".join(parts)


def _grids(pairs: Iterable[tuple[int | None, int | None]]) -> Iterator[_Grid]:
    """Split pairs into layers and experts such that each of these layers has each of these experts."""
    experts, layers = defaultdict(set), defaultdict(set)
    for layer, expert in pairs:
        experts[layer].add(expert)
    for layer, those in experts.items():
        layers[layer is None, frozenset(those)].add(layer)
    yield from ((frozenset(numbers), those) for (_, those), numbers in layers.items())
