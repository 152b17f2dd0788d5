"""What a picture of a plan shows, as data: a grid of modules, and for each share who shares what in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from bishare_dsl.models.site import Site, block_of, layers_of
from bishare_dsl.plan import Plan, Pool, Tensor
from bishare_dsl.show.colours import colours
from bishare_dsl.show.rows import ShareRow, shares, spans, via
from bishare_dsl.spec import Spec

_EXPERT = re.compile(r"(.*experts)\.(\d+)\.(.*)")


@dataclass(frozen=True)
class Grid:
    """The modules of a panel: layers across, modules of a block down, each in the model's order.

    ``groups`` and ``names`` label the rows, ``self_attn`` and ``q_proj``. ``places`` has the row and
    the column of each of ``sites``. Neighbouring experts that share the same tensors in this panel have one
    row, ``experts.0-7``.
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
    """The tensors of one role of a share, on a grid of modules; ``roles`` has several where the same modules
    share them. ``private`` tensors belong to single modules by the transform, not by a key."""

    roles: tuple[str, ...]
    patches: tuple[Patch, ...]
    uncovered: tuple[int, ...]
    grid: Grid
    private: bool = False

    @property
    def alone(self) -> bool:
        """Tell whether no two modules share."""
        return all(len(patch.sites) == 1 for patch in self.patches)

    @property
    def frozen(self) -> bool:
        """Tell whether its tensors keep their initial values."""
        return not self.patches[0].tensors[0].trainable

    @property
    def parameters(self) -> int:
        """Count the numbers in its tensors."""
        return sum(tensor.size for patch in self.patches for tensor in patch.tensors)


@dataclass(frozen=True)
class Section:
    """One share. ``key`` and ``settings`` are its statement up to the rank, and from the rank on; without a
    spec ``key`` is ``""``."""

    row: ShareRow
    key: str
    settings: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Picture:
    """All that is drawn of a plan."""

    plan: Plan
    sections: tuple[Section, ...]

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All panels, in order."""
        return tuple(panel for section in self.sections for panel in section.panels)


def picture(plan: Plan, spec: Spec | None = None) -> Picture:
    """Collect what to draw of a plan."""
    statements = _statements(spec)
    sections = []
    for row in shares(plan):
        key, settings = statements.get(row.name, ("", _settings(row)))
        for option, value in row.options.items():  # What is left to the model is known here.
            settings = settings.replace(f"{option} = auto", f"{option} = {value}")
        sections.append(Section(row, key, settings, tuple(_panels(plan, row.name))))
    return Picture(plan, tuple(sections))


def _grid(plan: Plan, pools: Mapping[str, str]) -> Grid:
    """Place the modules of a panel, where ``pools`` names the tensor of each that has one."""
    sites = plan.sites
    experts = _expert_rows(plan, pools)
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


def _expert_rows(plan: Plan, pools: Mapping[str, str]) -> dict[str, str]:
    """Return the row of each expert's module: neighbours with the same tensors have one."""
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


def _panels(plan: Plan, share: str) -> Iterator[Panel]:
    """Yield a panel for each set of roles whose tensors the same modules use, and that train or stay."""
    index = {site.path: i for i, site in enumerate(plan.sites)}
    roles: dict[tuple[str, bool], list[Pool]] = {}
    for pool in plan.pools:
        if pool.share == share:
            roles.setdefault((pool.role, False), []).append(pool)
    pooled = {pool.tensor for pool in plan.pools}
    for term in (term for term in plan.terms if term.share == share):
        for role, name in term.tensors.items():
            if name not in pooled:
                own = Pool(share=share, role=role, key=(), tensor=name, members=(term.site,))
                roles.setdefault((role, True), []).append(own)
    panels: dict[object, dict[str, list[Pool]]] = {}
    for (role, private), pools in roles.items():
        members = tuple(tuple(sorted(index[path] for path in pool.members)) for pool in pools)
        trains = plan.tensor[pools[0].tensor].trainable
        panels.setdefault((members, private, trains), {})[role] = pools
    for (members, private, _), found in panels.items():  # type: ignore[misc]
        first = next(iter(found.values()))
        shared = {
            path: pool.tensor if len(pool.members) > 1 else ""
            for pool in first
            for path in pool.members
        }
        grid = _grid(plan, shared)
        corners = [grid.places[sites[0]] for sites in members]
        chosen = colours(corners, alone=all(len(sites) == 1 for sites in members))
        patches = (
            Patch(
                tuple(plan.tensor[pool.tensor] for pool in pools), _label(pools[0]), colour, sites
            )
            for colour, sites, *pools in zip(chosen, members, *found.values(), strict=True)
        )
        covered = {i for sites in members for i in sites}
        uncovered = tuple(i for i in range(len(grid.sites)) if i not in covered)
        yield Panel(tuple(found), tuple(patches), uncovered, grid, private)


def _label(pool: Pool) -> str:
    """Return what a tensor's name says of its key: ``layer_3`` of ``intra.layer_3.A``."""
    return pool.tensor.removeprefix(f"{pool.share}.").removesuffix(pool.role).rstrip(".") or "all"


def _settings(row: ShareRow) -> str:
    """Write the rank of a share and its transform, from a plan alone."""
    said = via(row.transform, row.options)
    rank = f"rank {', '.join(map(str, row.ranks))}"
    return rank if said == "-" else f"{rank} via {said}"


def _statements(spec: Spec | None) -> dict[str, tuple[str, str]]:
    """Return the statement of each share before and from its rank on, with the values of params in it."""
    if spec is None:
        return {}
    from bishare_dsl.language import spec_text

    statements = {}
    for share in spec.shares:
        settings = spec.settings(share)
        whole = share.model_copy(
            update={name: getattr(settings, name) for name in settings.model_fields_set}
        )
        data = _with_values(whole.model_dump(mode="json", exclude_unset=True), spec.values)
        # One at a time, so that nothing is aligned with the others.
        text = spec_text(spec.model_copy(update={"shares": (type(share).model_validate(data),)}))
        statement = " ".join(text[text.rindex("\nshare ") :].split())
        key, _, rest = statement.split(" ", 2)[2].partition("rank ")
        statements[share.name] = key.strip(), f"rank {rest}"
    return statements


def _with_values(data: Any, values: Mapping[str, int | float | str]) -> Any:
    """Put the values of params where a share's data refers to them."""
    if isinstance(data, list):
        return [_with_values(part, values) for part in data]
    if not isinstance(data, dict):
        return data
    if data.keys() == {"ref"} and data["ref"] in values:
        value = values[data["ref"]]
        return {"ref": value} if isinstance(value, str) else value
    return {key: _with_values(part, values) for key, part in data.items()}
