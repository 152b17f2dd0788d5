"""What a picture of a plan shows, as data: a grid of modules, and for each share who shares what in it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby

from bishare_dsl.models.site import Site, block_of, layers_of
from bishare_dsl.plan import Plan, Pool, Tensor
from bishare_dsl.show.colours import colours
from bishare_dsl.show.rows import ShareRow, shares, spans
from bishare_dsl.spec import Spec

_EXPERT = re.compile(r"(.*experts)\.(\d+)\.(.*)")


@dataclass(frozen=True)
class Grid:
    """The modules of a plan: layers across, modules of a block down, each in the model's order.

    ``groups`` and ``names`` say what each row is, ``self_attn`` and ``q_proj``. ``places`` has the row and
    the column of each of ``sites``. Experts that share alike have one row, ``experts.0-7``.
    """

    groups: tuple[str, ...]
    names: tuple[str, ...]
    layers: tuple[int | str, ...]
    sites: tuple[Site, ...]
    places: tuple[tuple[int, int], ...]

    @property
    def rows(self) -> tuple[str, ...]:
        """Say what each row is, in one word: ``self_attn.q_proj``."""
        pairs = zip(self.groups, self.names, strict=True)
        return tuple(f"{group}.{name}" if group else name for group, name in pairs)


@dataclass(frozen=True)
class Patch:
    """One pool of a panel: its tensor, or one for each role, its colour, and the indices of its sites in the
    grid."""

    tensors: tuple[Tensor, ...]
    label: str
    colour: str
    sites: tuple[int, ...]


@dataclass(frozen=True)
class Panel:
    """Who shares the tensors of one role; ``roles`` has several where these are shared alike."""

    roles: tuple[str, ...]
    patches: tuple[Patch, ...]
    uncovered: tuple[int, ...]

    @property
    def alone(self) -> bool:
        """Tell whether no two modules share."""
        return all(len(patch.sites) == 1 for patch in self.patches)


@dataclass(frozen=True)
class Section:
    """One share. ``key`` is what the spec says of who shares, ``""`` where the spec is not known. ``own`` has
    the tensors that single modules have, by the index of the site."""

    row: ShareRow
    key: str
    panels: tuple[Panel, ...]
    own: dict[int, tuple[tuple[str, Tensor], ...]]


@dataclass(frozen=True)
class Picture:
    """All that is drawn of a plan."""

    plan: Plan
    grid: Grid
    sections: tuple[Section, ...]


def picture(plan: Plan, spec: Spec | None = None) -> Picture:
    """Collect what to draw of a plan."""
    grid, keys = _grid(plan), _keys(spec)
    found = (
        Section(
            row, keys.get(row.name, ""), _panels(plan, grid, row.name), _own(plan, grid, row.name)
        )
        for row in shares(plan)
    )
    return Picture(plan, grid, tuple(found))


def _grid(plan: Plan) -> Grid:
    sites = plan.sites
    experts = _expert_rows(plan)
    split = [
        (tower, experts.get(site.path, inner))
        for site in sites
        for tower, inner in [split_path(site.path)]
    ]
    towers = {tower for tower, _ in split}
    # Two towers may each have a `layers.0`.
    keys = [(tower if len(towers) > 1 else "", inner) for tower, inner in split]
    rows = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    layers = {layer: i for i, layer in enumerate(layers_of(sites))}
    parents = [(tower, *inner.rpartition(".")) for tower, inner in rows]
    return Grid(
        groups=tuple(".".join(filter(None, (tower, parent))) for tower, parent, _, _ in parents),
        names=tuple(name for *_, name in parents),
        layers=tuple("none" if layer is None else layer for layer in layers),
        sites=sites,
        places=tuple(
            (rows[key], layers[site.layer]) for key, site in zip(keys, sites, strict=True)
        ),
    )


def _expert_rows(plan: Plan) -> dict[str, str]:
    """Return the row of each expert's module: experts side by side that share alike have one."""
    pools: dict[str, list[tuple[str, str, str]]] = {}
    for pool in plan.pools:
        shared = pool.tensor if len(pool.members) > 1 else ""
        for path in pool.members:
            pools.setdefault(path, []).append((pool.share, pool.role, shared))
    experts: dict[str, dict[int, dict[str, object]]] = {}
    parts: dict[str, tuple[str, int, str]] = {}
    for site in plan.sites:
        place, inner = split_path(site.path)
        if match := _EXPERT.fullmatch(inner):
            of, number, rest = f"{place} {match[1]}", int(match[2]), match[3]
            shares = experts.setdefault(of, {}).setdefault(number, {})
            shares[f"{site.layer} {rest}"] = pools.get(site.path)
            parts[site.path] = of, number, rest
    said: dict[tuple[str, int], str] = {}
    for of, found in experts.items():
        for _, alike in groupby(sorted(found), found.__getitem__):
            numbers = [*alike]
            said |= {(of, n): f"{of.split()[-1]}.{spans(numbers)}" for n in numbers}
    return {path: f"{said[of, number]}.{rest}" for path, (of, number, rest) in parts.items()}


def split_path(path: str) -> tuple[str, str]:
    """Split a module's path at the number of its block; what is in no block has no tower."""
    place, _, inner = block_of(path) or ("", "", path)
    return place, inner


def _panels(plan: Plan, grid: Grid, share: str) -> tuple[Panel, ...]:
    index = {site.path: i for i, site in enumerate(grid.sites)}
    roles: dict[str, list[Pool]] = {}
    for pool in plan.pools:
        if pool.share == share:
            roles.setdefault(pool.role, []).append(pool)
    alike: dict[tuple[tuple[int, ...], ...], dict[str, list[Pool]]] = {}
    for role, pools in roles.items():
        members = tuple(tuple(sorted(index[path] for path in pool.members)) for pool in pools)
        alike.setdefault(members, {})[role] = pools
    panels = []
    for members, found in alike.items():
        first = [grid.places[sites[0]] for sites in members]
        chosen = colours(first, alone=all(len(sites) == 1 for sites in members))
        patches = (
            Patch(
                tuple(plan.tensor[pool.tensor] for pool in pools), _label(pools[0]), colour, sites
            )
            for colour, sites, *pools in zip(chosen, members, *found.values(), strict=True)
        )
        covered = {i for sites in members for i in sites}
        uncovered = (i for i in range(len(grid.sites)) if i not in covered)
        panels.append(Panel(tuple(found), tuple(patches), tuple(uncovered)))
    return tuple(panels)


def _label(pool: Pool) -> str:
    """Return what a tensor's name says of its key: ``layer_3`` of ``intra.layer_3.A``."""
    return pool.tensor.removeprefix(f"{pool.share}.").removesuffix(pool.role).rstrip(".") or "all"


def _own(plan: Plan, grid: Grid, share: str) -> dict[int, tuple[tuple[str, Tensor], ...]]:
    pooled = {pool.tensor for pool in plan.pools}
    index = {site.path: i for i, site in enumerate(grid.sites)}
    return {
        index[term.site]: own
        for term in plan.terms
        if term.share == share
        and (
            own := tuple(
                (role, plan.tensor[name])
                for role, name in term.tensors.items()
                if name not in pooled
            )
        )
    }


def _keys(spec: Spec | None) -> dict[str, str]:
    """Return what a spec says of who shares, by share: ``where layer < 20 per layer // 2``."""
    if spec is None:
        return {}
    from bishare_dsl.language import spec_text

    keys = {}
    for share in spec.shares:
        # One at a time, so that nothing is aligned with the others.
        text = spec_text(spec.model_copy(update={"shares": (share,)}))
        statement = " ".join(text[text.rindex("\nshare ") :].split())
        keys[share.name] = statement.split(" ", 2)[2].partition(" rank ")[0]
    return keys
