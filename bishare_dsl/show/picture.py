"""The content of a plan's picture, as data: a grid of modules for each share, with its pools."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

from bishare_dsl.models.site import Site, block_of, layers_of
from bishare_dsl.plan import Plan, Pool, Tensor
from bishare_dsl.show.colours import colours
from bishare_dsl.show.places import spans
from bishare_dsl.show.rows import ShareRow, shares
from bishare_dsl.spec import Spec

_EXPERT = re.compile(r"(.*experts)\.(\d+)\.(.*)")


@dataclass(frozen=True)
class Grid:
    """The modules of a panel: layers across and modules of a block down, in the model's order.

    ``groups`` and ``names`` label the rows, ``self_attn`` and ``q_proj``. ``places`` has the row and
    the column of each of ``sites``. Neighbouring experts with the same tensors in this panel have one row,
    ``experts.0-7``.
    """

    groups: tuple[str, ...]
    names: tuple[str, ...]
    layers: tuple[int | str, ...]
    sites: tuple[Site, ...]
    places: tuple[tuple[int, int], ...]

    @property
    def rows(self) -> tuple[str, ...]:
        """Return the names of the rows, such as ``self_attn.q_proj``."""
        pairs = zip(self.groups, self.names, strict=True)
        return tuple(f"{group}.{name}" if group else name for group, name in pairs)


@dataclass(frozen=True)
class Patch:
    """One pool of a panel: a tensor for each role, a colour, and the indices of its sites in the grid."""

    tensors: tuple[Tensor, ...]
    label: str
    colour: str
    sites: tuple[int, ...]


@dataclass(frozen=True)
class Panel:
    """The tensors of one role of a share on a grid of modules, or of several roles with the same pools."""

    roles: tuple[str, ...]
    patches: tuple[Patch, ...]
    uncovered: tuple[int, ...]
    grid: Grid

    @property
    def alone(self) -> bool:
        """Return whether every pool has a single module."""
        return all(len(patch.sites) == 1 for patch in self.patches)

    @property
    def frozen(self) -> bool:
        """Return whether the tensors keep their initial values."""
        return not self.patches[0].tensors[0].trainable

    @property
    def parameters(self) -> int:
        """Count the parameters of all tensors."""
        return sum(tensor.size for patch in self.patches for tensor in patch.tensors)


@dataclass(frozen=True)
class Section:
    """One share, with its statement; without a spec, its ranks and its transform."""

    row: ShareRow
    statement: str
    panels: tuple[Panel, ...]


def picture(plan: Plan, spec: Spec | None = None) -> list[Section]:
    """Collect what to draw of a plan, share by share."""
    statements = _statements(spec)
    return [
        Section(row, statements.get(row.name, _settings(row)), tuple(_panels(plan, row.name)))
        for row in shares(plan)
    ]


def _grid(plan: Plan, pools: Mapping[str, str]) -> Grid:
    """Arrange the modules of a panel; ``pools`` maps the path of a module to the name of its tensor."""
    sites = plan.sites
    experts = _expert_rows(plan, pools)
    paths = {site.path: split_path(site.path) for site in sites}
    split = [(tower, experts.get(path, inner)) for path, (tower, inner) in paths.items()]
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
    """Map the path of each expert's module to its row; neighbours with the same tensors have one row."""
    experts: dict[str, dict[int, dict[str, object]]] = {}
    parts: dict[str, tuple[str, int, str]] = {}
    for site in plan.sites:
        tower, inner = split_path(site.path)
        if match := _EXPERT.fullmatch(inner):
            of = f"{tower} {match[1]}"
            number = int(match[2])
            rest = match[3]
            shares = experts.setdefault(of, {}).setdefault(number, {})
            shares[f"{site.layer} {rest}"] = pools.get(site.path)
            parts[site.path] = of, number, rest
    rows: dict[tuple[str, int], str] = {}
    for of, tensors in experts.items():
        for _, equal in groupby(sorted(tensors), tensors.__getitem__):
            numbers = [*equal]
            rows |= {(of, n): f"{of.split()[-1]}.{spans(numbers)}" for n in numbers}
    return {path: f"{rows[of, number]}.{rest}" for path, (of, number, rest) in parts.items()}


def split_path(path: str) -> tuple[str, str]:
    """Split a module's path at the number of its block. Outside of blocks the first part is empty."""
    tower, _, inner = block_of(path) or ("", "", path)
    return tower, inner


def _other_pools(plan: Plan, share: str) -> Iterator[Pool]:
    """Yield a pool for each tensor of a share that no pool of it has: of one module, or of another share."""
    pooled = {pool.tensor for pool in plan.pools if pool.share == share}
    users: dict[tuple[str, str], list[str]] = {}  # by role and tensor
    for term in plan.terms:
        if term.share == share:
            for role, name in term.tensors.items():
                if name not in pooled or (share, role) in plan.references:
                    users.setdefault((role, name), []).append(term.site)
    for (role, name), paths in users.items():
        yield Pool(share=share, role=role, key=(), tensor=name, members=tuple(paths))


def _panels(plan: Plan, share: str) -> Iterator[Panel]:
    """Yield a panel for each set of roles with the same pools, all trained or all frozen."""
    index = {site.path: i for i, site in enumerate(plan.sites)}
    roles: dict[tuple[str, bool], list[Pool]] = {}
    for pool in plan.pools:
        if pool.share == share:
            roles.setdefault((pool.role, False), []).append(pool)
    for pool in _other_pools(plan, share):
        private = (share, pool.role) not in plan.references
        roles.setdefault((pool.role, private), []).append(pool)
    panels: dict[object, dict[str, list[Pool]]] = {}
    for (role, private), pools in roles.items():
        members = tuple(tuple(sorted(index[path] for path in pool.members)) for pool in pools)
        trains = plan.tensor[pools[0].tensor].trainable
        panels.setdefault((members, private, trains), {})[role] = pools
    for (members, *_), pools_of in panels.items():  # type: ignore[misc]
        shared: dict[str, str] = {}
        for pool in next(iter(pools_of.values())):
            name = pool.tensor if len(pool.members) > 1 else ""
            shared |= dict.fromkeys(pool.members, name)
        grid = _grid(plan, shared)
        corners = [grid.places[sites[0]] for sites in members]
        chosen = colours(corners)
        patches = (
            Patch(
                tuple(plan.tensor[pool.tensor] for pool in pools), _label(pools[0]), colour, sites
            )
            for colour, sites, *pools in zip(chosen, members, *pools_of.values(), strict=True)
        )
        covered = {i for sites in members for i in sites}
        uncovered = tuple(i for i in range(len(grid.sites)) if i not in covered)
        yield Panel(tuple(pools_of), tuple(patches), uncovered, grid)


def _label(pool: Pool) -> str:
    """Return the part of a tensor's name that describes its key: ``layer_3`` in ``intra.layer_3.A``."""
    return pool.tensor.removeprefix(f"{pool.share}.").removesuffix(pool.role).rstrip(".") or "all"


def _settings(row: ShareRow) -> str:
    """Say the ranks and the facts of a share, without its spec."""
    facts = list(row.facts)
    if row.ranks:
        facts.insert(0, f"rank {', '.join(map(str, row.ranks))}")
    return "; ".join(facts)


def _statements(spec: Spec | None) -> dict[str, str]:
    """Return the statement of each share after its name, with the values of params."""
    if spec is None:
        return {}
    from bishare_dsl.language import spec_text

    statements = {}
    for share in spec.shares:
        # One at a time, so that the formatter does not align their columns.
        text = spec_text(spec.model_copy(update={"shares": (share,)}))
        word = share.name if share.is_magnitude else "share"
        words = text[text.rindex(f"\n{word} ") :].split()
        statement = " ".join(words[1 if share.is_magnitude else 2 :])
        used = [f"{n} = {v}" for n, v in spec.values.items() if re.search(rf"\b{n}\b", statement)]
        statements[share.name] = "; ".join([statement, *used])
    return statements
