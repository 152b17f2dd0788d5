"""A plan in a few rows: what each share and each factor costs, what each kind and each layer gets."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from bishare_dsl.models.site import runs_of
from bishare_dsl.plan import Plan, Tensor, Term
from bishare_dsl.plan.in_full import TRAIN
from bishare_dsl.plan.ranks import effective_ranks
from bishare_dsl.show.table import Table
from bishare_dsl.transforms import Width

BYTES = 4
"""Of a parameter: adapters are saved, and train, in float32."""
MIB = 1 << 20

Bounds = tuple[int, int]
"""The least and the most."""


@dataclass(frozen=True)
class ShareRow:
    """One share. ``ranks`` and ``scales`` are the distinct ones; ``options`` are the transform's,
    defaults included."""

    name: str
    modules: int
    transform: str
    options: dict[str, Any]
    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    dropout: float
    trainable: int
    of_total: float


@dataclass(frozen=True)
class WholeRow:
    """Parameters of the base, ``count`` of one ``shape``, that are trained in full."""

    path: str
    count: int
    shape: tuple[int, ...]
    parameters: int

    def __str__(self) -> str:
        return f"{self.path}  {self.parameters:,}"


@dataclass(frozen=True)
class RoleRow:
    """The tensors of one role of a share, pooled or a module's own.

    ``pools`` counts them; ``members`` are the modules of one, ``rows`` and ``columns`` its shape.
    """

    share: str
    role: str
    pools: int
    members: Bounds
    rows: Bounds
    columns: Bounds
    parameters: int
    trainable: bool


@dataclass(frozen=True)
class KindRow:
    """The modules of one name and shape.

    ``effective_rank`` is the highest rank that the update of such a module can have, which is that of its
    export as plain LoRA. None where some update is not a matrix.
    """

    kind: str
    modules: int
    d_in: int
    d_out: int
    effective_rank: Bounds | None


@dataclass(frozen=True)
class LayerRow:
    """Layers ``first`` to ``last``, which are alike: what holds for each of them; None for what is in none.

    ``own`` counts the parameters that no other layer uses, ``shared`` those that others use too.
    """

    first: int | None
    last: int | None
    modules: int
    effective_rank: Bounds | None
    own: int
    shared: int


@dataclass(frozen=True)
class Memory:
    """Bytes that training takes, without activations: the base's weights in bfloat16; the adapter's, its
    gradients and the two moments of AdamW in float32."""

    base: int
    weights: int
    gradients: int
    optimizer: int


class Held(NamedTuple):
    """How many numbers of an adapter's terms several modules use, and how many one module has for itself.

    ``frozen`` ones never train, and count in neither of the others.
    """

    shared: int
    private: int
    frozen: int

    def __str__(self) -> str:
        trained = self.shared + self.private
        parts = [f"{trained:,} trainable parameters"]
        if trained:
            parts.append(f"{self.shared:,} shared by several modules ({self.shared / trained:.1%})")
            parts.append(f"{self.private:,} private to one ({self.private / trained:.1%})")
        parts += [f"{self.frozen:,} more are frozen"] if self.frozen else []
        return ", ".join(parts)


def held(plan: Plan) -> Held:
    """Count what a plan's modules share, and what each has for itself."""
    users = Counter(name for term in plan.terms for name in {*term.tensors.values()})
    sizes = Counter[str]()
    for name, count in users.items():
        tensor = plan.tensor[name]
        kind = "frozen" if not tensor.trainable else "shared" if count > 1 else "private"
        sizes[kind] += tensor.size
    return Held(sizes["shared"], sizes["private"], sizes["frozen"])


def memory(plan: Plan) -> Memory:
    """Count what a plan's adapter takes while it trains."""
    trainable = BYTES * plan.trainable
    weights = trainable + BYTES * plan.frozen
    return Memory(2 * plan.base.parameters, weights, trainable, 2 * trainable)


def lora_size(plan: Plan, rank: int = 8) -> int:
    """Count the parameters of a plain LoRA on the modules that a plan adapts."""
    return sum(rank * (site.d_in + site.d_out) for site in plan.sites if plan.terms_of[site.path])


def rank_bounds(ranks: Iterable[int | None]) -> Bounds | None:
    """Return the least and the most of some sites' ranks; None where one has none, or there is no site."""
    found = list(ranks)
    known = [rank for rank in found if rank is not None]
    return bounds(known) if found and len(known) == len(found) else None


def shares(plan: Plan) -> list[ShareRow]:
    """Make a row for each share that has parameters, in the spec's order."""
    # In the order of their tensors. What is trained in full is no share.
    terms: dict[str, list[Term]] = {name: [] for name in plan.shares if name != TRAIN}
    for term in plan.terms:
        terms[term.share].append(term)
    return [
        ShareRow(
            name=name,
            modules=len(terms[name]),
            transform=terms[name][0].transform,
            options=terms[name][0].options,
            ranks=tuple(sorted({term.rank for term in terms[name]})),
            scales=tuple(sorted({term.scale for term in terms[name]})),
            dropout=terms[name][0].dropout,
            trainable=plan.shares[name],
            of_total=plan.shares[name] / plan.trainable,
        )
        for name in terms
    ]


def trained_in_full(plan: Plan) -> list[WholeRow]:
    """Make a row for parameters trained in full that are alike but for their layer, in the model's order."""
    found: dict[tuple[str, tuple[int, ...]], int] = {}
    for trained in plan.trained:
        uses = " = ".join(re.sub(r"\.\d+(?=\.)", ".*", path) for path in trained.paths)
        found[uses, trained.shape] = found.get((uses, trained.shape), 0) + 1
    return [WholeRow(uses, n, shape, n * prod(shape)) for (uses, shape), n in found.items()]


def via(transform: str, options: Mapping[str, Any]) -> str:
    """Write a transform as a spec does, without the switches that are off; ``-`` for none."""
    if transform == "Identity":
        return "-"
    said = ", ".join(
        f"{name} = {'true' if value is True else value}"
        for name, value in options.items()
        if value is not None and value is not False
    )
    return f"{transform}({said})" if said else transform


def roles(plan: Plan) -> list[RoleRow]:
    """Make a row for each role of each share: pooled tensors first, then those of single modules."""
    users: Counter[str] = Counter()
    tensors: dict[tuple[str, str], dict[str, Tensor]] = {}
    for pool in plan.pools:
        tensors.setdefault((pool.share, pool.role), {})
    for term in plan.terms:
        for role, name in term.tensors.items():
            users[name] += 1
            tensors.setdefault((term.share, role), {})[name] = plan.tensor[name]
    order = {name: i for i, name in enumerate(plan.shares)}
    return [
        RoleRow(
            share=share,
            role=role,
            pools=len(found),
            members=bounds(users[name] for name in found),
            rows=bounds(tensor.shape[0] for tensor in found.values()),
            columns=bounds(tensor.shape[1] for tensor in found.values()),
            parameters=sum(tensor.size for tensor in found.values()),
            trainable=all(tensor.trainable for tensor in found.values()),
        )
        for (share, role), found in sorted(tensors.items(), key=lambda item: order[item[0][0]])
    ]


def role_table(plan: Plan, share: str | None = None) -> Table:
    """Make the table of all roles, or of those of a share."""
    return Table(
        ["share", "role", "pools", "modules each", "shape", "parameters"],
        [
            [
                row.share,
                row.role,
                f"{row.pools:,}",
                span(row.members),
                f"{span(row.rows)} x {span(row.columns)}",
                f"{row.parameters:,}" + ("" if row.trainable else " frozen"),
            ]
            for row in roles(plan)
            if share in (None, row.share)
        ],
        left={0, 1},
    )


def kinds(plan: Plan) -> list[KindRow]:
    """Make a row for each kind and shape of target module, in the model's order; tied modules are one."""
    ranks = effective_ranks(plan)
    paths: dict[tuple[str, Width], list[str]] = {}
    for site in plan.sites:
        uses = " = ".join(dict.fromkeys(path.rpartition(".")[2] for path in site.paths))
        paths.setdefault((uses, Width(site.d_in, site.d_out)), []).append(site.path)
    rows = []
    for (kind, width), found in paths.items():
        effective = rank_bounds(ranks[path] for path in found)
        rows.append(KindRow(kind, len(found), *width, effective))
    return rows


def layers(plan: Plan) -> list[LayerRow]:
    """Make a row for each run of layers that are alike."""
    ranks = effective_ranks(plan)
    sites: dict[int | None, list[str]] = {}
    for site in plan.sites:
        sites.setdefault(site.layer, []).append(site.path)
    uses: dict[int | None, dict[str, None]] = {
        layer: {
            name: None
            for path in paths
            for term in plan.terms_of[path]
            for name in term.tensors.values()
        }
        for layer, paths in sites.items()
    }
    users = Counter(name for names in uses.values() for name in names)
    rows: list[LayerRow] = []
    for layer, paths in sites.items():
        sizes = [(users[name] > 1, plan.tensor[name].size) for name in uses[layer]]
        row = LayerRow(
            first=layer,
            last=layer,
            modules=sum(1 for path in paths if plan.terms_of[path]),
            effective_rank=rank_bounds(ranks[path] for path in paths),
            own=sum(size for shared, size in sizes if not shared),
            shared=sum(size for shared, size in sizes if shared),
        )
        before = rows[-1] if rows else None
        follows = before and layer is not None and before.last == layer - 1
        if before and follows and _alike(before, row):
            rows[-1] = LayerRow(**{**vars(before), "last": layer})
        else:
            rows.append(row)
    return rows


def _alike(one: LayerRow, other: LayerRow) -> bool:
    return {**vars(one), "first": 0, "last": 0} == {**vars(other), "first": 0, "last": 0}


def bounds(values: Iterable[int]) -> Bounds:
    """Return the least and the most of some numbers."""
    found = list(values)
    return min(found), max(found)


def spans(numbers: Iterable[int]) -> str:
    """Write whole numbers as their runs, ``0-3, 5``."""
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs_of(numbers))


def span(found: Bounds | None) -> str:
    """Write the least and the most; one number where they are the same."""
    if found is None:
        return "-"
    least, most = found
    return f"{least:,}" if least == most else f"{least:,}-{most:,}"


def mib(size: int) -> str:
    """Write a number of bytes in MiB, to three digits or more."""
    value = size / MIB
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
