"""Summarise a plan in rows: by share, by role, by kind of module and by layer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

from bishare_dsl.diagnostics.record import Record
from bishare_dsl.models.site import runs_of
from bishare_dsl.plan import Plan, Tensor, Term
from bishare_dsl.plan.in_full import TRAIN
from bishare_dsl.plan.ranks import maximum_ranks
from bishare_dsl.transforms import PLAIN, Width

BYTES = 4
"""Bytes of a parameter: adapters are trained and saved in float32."""
MIB = 1 << 20
_STARTS = {"A": "kaiming_uniform", "B": "zeros"}
"""What is not said of a factor's start: that of LoRA."""
_RANKS = 4
"""Of a share with more ranks than this, only the least and the largest are said."""

Bounds = tuple[int, int]
"""The smallest and the largest value."""


class ShareRow(Record):
    """One share, with its distinct ``ranks`` and ``scales``, and all ``options`` of its transform.

    ``tensors`` says for each role how many modules use a tensor. ``shared`` is the fraction of the trained
    numbers that more than one module uses, None without any. ``places`` says which layers have which rank,
    or which layers it covers, if not all. A magnitude has neither ranks nor scales.
    """

    name: str
    modules: int
    transform: str
    options: dict[str, Any]
    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    dropout: float
    trainable: int
    tensors: dict[str, str]
    shared: float | None
    places: str


class WholeRow(Record):
    """Parameters of the base, ``count`` of one ``shape``, that are trained in full."""

    path: str
    count: int
    shape: tuple[int, ...]
    parameters: int

    def __str__(self) -> str:
        return f"{self.path}  {self.parameters:,}"


class RoleRow(Record):
    """The tensors of one role of a share, pooled or private.

    ``pools`` counts them, ``members`` counts the modules of one, and ``rows`` and ``columns`` are its shape.
    ``start`` is a word or a number.
    """

    share: str
    role: str
    pools: int
    members: Bounds
    rows: Bounds
    columns: Bounds
    parameters: int
    trainable: bool
    start: str = ""


class KindRow(Record):
    """The modules of one name and shape.

    ``maximum_rank`` is the highest rank that the update of such a module can have, which is the rank of its
    export as plain LoRA, or None if an update is not a matrix.
    """

    kind: str
    modules: int
    d_in: int
    d_out: int
    maximum_rank: Bounds | None


class LayerRow(Record):
    """Equal layers ``first`` to ``last``, with the numbers of each; None for modules outside of blocks."""

    first: int | None
    last: int | None
    modules: int
    maximum_rank: Bounds | None

    @property
    def name(self) -> str:
        """The numbers of the layers, or ``none``."""
        return "none" if self.first is None or self.last is None else span((self.first, self.last))


class Memory(Record):
    """Bytes needed for training, without activations.

    The base's weights are in bfloat16; the adapter's weights, gradients and two moments of AdamW in float32.
    """

    base: int
    weights: int
    gradients: int
    optimizer: int


class Held(NamedTuple):
    """How many parameters of an adapter's terms are shared, private to one module, or frozen.

    Frozen parameters count as neither shared nor private.
    """

    shared: int
    private: int
    frozen: int


def _modules(plan: Plan) -> Counter[str]:
    """Count the modules that use each tensor, of which one may have several terms."""
    used = {(name, term.site) for term in plan.terms for name in term.tensors.values()}
    return Counter(name for name, _ in used)


def held(plan: Plan) -> Held:
    """Count the shared, private and frozen parameters of a plan."""
    sizes = Counter[str]()
    for name, count in _modules(plan).items():
        tensor = plan.tensor[name]
        kind = "frozen" if not tensor.trainable else "shared" if count > 1 else "private"
        sizes[kind] += tensor.size
    return Held(sizes["shared"], sizes["private"], sizes["frozen"])


def memory(plan: Plan) -> Memory:
    """Count the bytes that training a plan's adapter needs."""
    trainable = BYTES * plan.trainable
    weights = trainable + BYTES * plan.frozen
    return Memory(2 * plan.base.parameters, weights, trainable, 2 * trainable)


def lora_size(plan: Plan, rank: int = 8) -> int:
    """Count the parameters of a plain LoRA on the modules that a plan adapts."""
    return sum(rank * (site.d_in + site.d_out) for site in plan.sites if plan.terms_of[site.path])


def rank_bounds(ranks: Iterable[int | None]) -> Bounds | None:
    """Return the smallest and the largest rank, or None if a site has no rank or there are no sites."""
    all_ranks = list(ranks)
    matrix_ranks = [rank for rank in all_ranks if rank is not None]
    return bounds(matrix_ranks) if all_ranks and len(matrix_ranks) == len(all_ranks) else None


def shares(plan: Plan) -> list[ShareRow]:
    """Make a row for each share that has parameters, in the spec's order."""
    # In the order of their tensors. Parameters trained in full belong to no share.
    terms: dict[str, list[Term]] = {name: [] for name in plan.shares if name != TRAIN}
    for term in plan.terms:
        terms[term.share].append(term)
    tensors: dict[str, list[RoleRow]] = {name: [] for name in terms}
    for row in roles(plan):
        tensors[row.share].append(row)
    own = {tensor.share for tensor in plan.tensors if tensor.like is None}
    layer = {site.path: site.layer for site in plan.sites}
    return [
        ShareRow(
            name=name,
            modules=len(terms[name]),
            transform=terms[name][0].transform,
            options=terms[name][0].options,
            ranks=tuple(sorted({term.rank for term in terms[name] if not term.is_magnitude})),
            scales=tuple(sorted({term.scale for term in terms[name] if not term.is_magnitude})),
            dropout=terms[name][0].dropout,
            trainable=plan.shares[name],
            tensors={row.role: _users(row) for row in tensors[name]},
            shared=_shared(tensors[name]),
            places=_places(terms[name], layer),
        )
        for name in terms
        if name in own
    ]


def _users(row: RoleRow) -> str:
    users = f"{'for' if row.pools == 1 else 'each by'} {span(row.members)} modules"
    users = "private" if row.members[1] == 1 else users
    told = row.start != _STARTS[row.role] if row.role in _STARTS else row.start[0].isdigit()
    start = f", from {row.start}" if told or row.start.startswith("svd") else ""
    return f"{row.pools:,}, {users}{'' if row.trainable else ', frozen'}{start}"


def _places(terms: Sequence[Term], layer: Mapping[str, int | None]) -> str:
    ranks = sorted({term.rank for term in terms})
    of_rank = {rank: {layer[term.site] for term in terms if term.rank == rank} for rank in ranks}
    covered = {layer[term.site] for term in terms}
    if 1 < len(ranks) <= _RANKS and sum(map(len, of_rank.values())) == len(covered):
        return "rank " + ", ".join(f"{rank} in {_layers(of_rank[rank])}" for rank in ranks)
    return "" if covered == {*layer.values()} else f"in {_layers(covered)} alone"


def _layers(layers: Set[int | None]) -> str:
    numbers = spans(layer for layer in layers if layer is not None)
    return f"layers {numbers}" if numbers else "no layer"


def _shared(tensors: Iterable[RoleRow]) -> float | None:
    trained = [(row.parameters, row.members[1] > 1) for row in tensors if row.trainable]
    total = sum(count for count, _ in trained)
    return sum(count for count, is_shared in trained if is_shared) / total if total else None


def trained_in_full(plan: Plan) -> list[WholeRow]:
    """Make a row for parameters trained in full that differ only by layer, in the model's order."""
    counts: dict[tuple[str, tuple[int, ...]], int] = {}
    for trained in plan.trained:
        uses = " = ".join(re.sub(r"\.\d+(?=\.)", ".*", path) for path in trained.paths)
        counts[uses, trained.shape] = counts.get((uses, trained.shape), 0) + 1
    return [WholeRow(uses, n, shape, n * prod(shape)) for (uses, shape), n in counts.items()]


def via(transform: str, options: Mapping[str, Any]) -> str:
    """Write a transform as a spec does, without options that are false; ``-`` for none."""
    if transform == PLAIN:
        return "-"
    written = ", ".join(
        f"{name} = {'true' if value is True else value}"
        for name, value in options.items()
        if value is not None and value is not False
    )
    return f"{transform}({written})" if written else transform


def roles(plan: Plan) -> list[RoleRow]:
    """Make a row for each role of each share: pooled tensors first, then those of single modules."""
    users = _modules(plan)
    tensors: dict[tuple[str, str], dict[str, Tensor]] = {(p.share, p.role): {} for p in plan.pools}
    for term in plan.terms:
        for role, name in term.tensors.items():
            tensors.setdefault((term.share, role), {})[name] = plan.tensor[name]
    order = {name: i for i, name in enumerate(plan.shares)}
    return [
        RoleRow(
            share=share,
            role=role,
            pools=len(role_tensors),
            members=bounds(users[name] for name in role_tensors),
            rows=bounds(tensor.shape[0] for tensor in role_tensors.values()),
            columns=bounds(tensor.shape[1] for tensor in role_tensors.values()),
            parameters=sum(tensor.size for tensor in role_tensors.values()),
            trainable=all(tensor.trainable for tensor in role_tensors.values()),
            start=_start(next(iter(role_tensors.values()))),
        )
        for (share, role), role_tensors in sorted(
            tensors.items(), key=lambda item: order[item[0][0]]
        )
    ]


def _start(tensor: Tensor) -> str:
    return f"{tensor.amount:g}" if tensor.init == "constant" else tensor.init


def kinds(plan: Plan) -> list[KindRow]:
    """Make a row for each kind and shape of target module, in the model's order. Tied modules count once."""
    ranks = maximum_ranks(plan)
    paths: dict[tuple[str, Width], list[str]] = {}
    for site in plan.sites:
        uses = " = ".join(dict.fromkeys(path.rpartition(".")[2] for path in site.paths))
        paths.setdefault((uses, Width(site.d_in, site.d_out)), []).append(site.path)
    rows = []
    for (kind, width), modules in paths.items():
        rows.append(KindRow(kind, len(modules), *width, rank_bounds(ranks[p] for p in modules)))
    return rows


def layers(plan: Plan) -> list[LayerRow]:
    """Make a row for each run of equal layers."""
    ranks = maximum_ranks(plan)
    sites: dict[int | None, list[str]] = {}
    for site in plan.sites:
        sites.setdefault(site.layer, []).append(site.path)
    rows: list[LayerRow] = []
    for layer, paths in sites.items():
        row = LayerRow(
            first=layer,
            last=layer,
            modules=sum(1 for path in paths if plan.terms_of[path]),
            maximum_rank=rank_bounds(ranks[path] for path in paths),
        )
        if rows and layer and rows[-1] == replace(row, first=rows[-1].first, last=layer - 1):
            rows[-1] = replace(rows[-1], last=layer)
        else:
            rows.append(row)
    return rows


def bounds(values: Iterable[int]) -> Bounds:
    """Return the smallest and the largest number."""
    numbers = list(values)
    return min(numbers), max(numbers)


def spans(numbers: Iterable[int]) -> str:
    """Write whole numbers as runs: ``0-3, 5``."""
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs_of(numbers))


def span(ends: Bounds | None) -> str:
    """Write the smallest and the largest number, or one number if they are equal."""
    if ends is None:
        return "-"
    least, most = ends
    return f"{least:,}" if least == most else f"{least:,}-{most:,}"


def mib(size: int) -> str:
    """Write a number of bytes in MiB, with at least three digits."""
    value = size / MIB
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
