"""Summarise a plan in rows: by share, by role and by kind of module."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import Any, TypeVar

from bishare_dsl.diagnostics.record import Record
from bishare_dsl.models.site import block_of
from bishare_dsl.plan import Plan, Pool, Tensor, Term
from bishare_dsl.plan.names import start_name
from bishare_dsl.plan.ranks import maximum_ranks
from bishare_dsl.show.places import Places, spans
from bishare_dsl.spec.spec import MAGNITUDE
from bishare_dsl.transforms import Width, load_transform
from bishare_dsl.transforms.described import via, zero_parts

BYTES = 4
"""Bytes of a parameter: adapters are trained and saved in float32."""
MIB = 1 << 20
_STARTS = {"A": "kaiming_uniform", "B": "zeros"}
"""What is not said of a factor's start: that of LoRA."""
_FEW = 4
"""Of a share with more ranks or scales than this, only the least and the largest are said."""

_Part = TypeVar("_Part", Term, Tensor, Pool, "RoleRow")
Bounds = tuple[int, int]
"""The smallest and the largest value."""


class ShareRow(Record):
    """One share, with its distinct ``ranks`` and ``scales``, and all ``options`` of its transform.

    ``tensors`` says for each role how many modules use a tensor. ``shared`` is the fraction of the trained
    numbers that more than one module uses, None without any. ``facts`` says in words what a reader of these
    numbers does not know: where it is, what it groups, how it starts. A magnitude has neither ranks nor
    scales.
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
    facts: tuple[str, ...]


class WholeRow(Record):
    """Parameters of the base, ``count`` of one ``shape``, that are trained in full."""

    path: str
    count: int
    shape: tuple[int, ...]
    parameters: int


class RoleRow(Record):
    """The tensors of one role of a share, pooled or private.

    ``pools`` counts them, ``members`` counts the modules of one, and ``rows`` and ``columns`` are its shape.
    ``start`` is a word or a number. ``owner`` is the share and role whose tensors they are, as in ``read.A``,
    if this is a reference, which adds no parameters.
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
    owner: str | None = None


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


def held(tensors: Iterable[Tensor], modules: Counter[str]) -> tuple[int, int, int]:
    """Count the shared, private and frozen parameters of tensors that ``modules`` use.

    Frozen parameters count as neither shared nor private.
    """
    sizes = Counter[str]()
    for tensor in (tensor for tensor in tensors if modules[tensor.name]):
        shared = "shared" if modules[tensor.name] > 1 else "private"
        sizes[shared if tensor.trainable else "frozen"] += tensor.size
    return sizes["shared"], sizes["private"], sizes["frozen"]


def _by_share(parts: Iterable[_Part]) -> dict[str, list[_Part]]:
    of_share: dict[str, list[_Part]] = defaultdict(list)
    for part in parts:
        of_share[part.share].append(part)
    return of_share


def memory(plan: Plan) -> dict[str, int]:
    """Count the bytes that training a plan's adapter needs, without activations.

    The base's weights are in bfloat16; the adapter's weights, gradients and two moments of AdamW in float32.
    """
    train = BYTES * plan.trainable
    weights = BYTES * (plan.trainable + plan.frozen)
    base = 2 * plan.base.parameters
    return {"base": base, "weights": weights, "gradients": train, "optimizer": 2 * train}


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
    terms = _by_share(plan.terms)
    tensors = _by_share(plan.tensors)
    pools = _by_share(plan.pools)
    every_role = _by_share(roles(plan))
    places = Places(plan)
    rows = []
    subtracting = {start_name(name) for name in terms}  # These belong to no share of the spec.
    for name in (name for name in terms if name not in subtracting):
        # A share of references alone has no tensor.
        own = tensors.get(name, [])
        first, (shared, private, _) = terms[name][0], held(own, plan.users)
        ranked = [term for term in terms[name] if not term.is_magnitude]
        rows.append(
            ShareRow(
                name=name,
                modules=len(terms[name]),
                transform=first.transform,
                options=first.options,
                ranks=tuple(sorted({term.rank for term in ranked})),
                scales=tuple(sorted({term.scale for term in ranked})),
                dropout=max(term.dropout for term in terms[name]),
                trainable=plan.shares[name],
                tensors={row.role: _users(row, plan, first) for row in every_role[name]},
                shared=shared / total if (total := shared + private) else None,
                facts=tuple(_facts(plan, terms[name], pools.get(name, []), places)),
            )
        )
    return rows


def _users(row: RoleRow, plan: Plan, first: Term) -> str:
    if row.owner is not None:
        return f"is {row.owner}"
    by = f"{'for' if row.pools == 1 else 'each by'} {span(row.members)} modules"
    words = [f"{row.pools:,}", "private" if row.members[1] == 1 else by]
    if not row.trainable:
        words.append("frozen")
    if plan.is_library and first.tensors[row.role] not in plan.common:
        words.append("per adapter")
    transform = load_transform(first.transform, first.options)
    default = transform.start(row.role).init if row.role in transform.roles else None
    if row.start != _STARTS.get(row.role, default):
        words.append(f"from {row.start}")
    return ", ".join(words)


def _values(numbers: Sequence[float]) -> str:
    """Write distinct numbers, or their smallest and largest if there are many."""
    distinct = dict.fromkeys(f"{number:.4g}" for number in numbers)
    if len(distinct) > _FEW:
        return f"{min(numbers):.4g} to {max(numbers):.4g}"
    return ", ".join(distinct)


def _facts(
    plan: Plan, terms: Sequence[Term], pools: Iterable[Pool], places: Places
) -> Iterator[str]:
    """Say how a share acts, where if not on all targets, which modules share, and how it starts."""
    first = terms[0]
    paths = [term.site for term in terms]
    scales = [term.scale for term in terms if not term.is_magnitude]
    if scales:
        yield f"scale {_values(scales)}"
    yield from _facts_of_transform(terms)
    covered = places.describe(paths, places.targets)
    if covered:
        yield f"in {covered} alone"
    yield from _places_of_ranks(terms, places)
    yield from _examples_of_pools(pools, places)
    for role, name in first.tensors.items():
        if (first.share, role) in plan.references:
            yield f"{role} of `{first.site}` is `{name}`, for example"
    dropouts = [100 * term.dropout for term in terms]
    if any(dropouts):
        yield f"drops {_values(dropouts)}% of its inputs"
    tensors = {role: plan.tensor[name] for role, name in first.tensors.items()}
    starts = {role: (tensor.init, tensor.amount) for role, tensor in tensors.items()}
    if start_name(first.share) in plan.shares:
        yield "what it starts with is subtracted"
    elif not zero_parts(load_transform(first.transform, first.options), starts):
        yield "a fresh model differs from its base"


def _facts_of_transform(terms: Sequence[Term]) -> Iterator[str]:
    """Say how a share acts."""
    first = terms[0]
    at_ranks = {term.rank: term for term in terms}.values()  # Options are equal at a rank.
    for transform in dict.fromkeys(via(term.transform, term.options) for term in at_ranks):
        if transform not in ("-", MAGNITUDE):
            yield f"via {transform}"
    if not (first.linear or first.is_magnitude):
        yield "depends on the token, so that it is neither merged nor exported"
    if first.is_magnitude and first.options["plain"]:
        yield "without the lengths of a DoRA"


def _places_of_ranks(terms: Sequence[Term], places: Places) -> Iterator[str]:
    """Say where each rank is, if there are several; of many, the least and the largest."""
    paths: dict[int, list[str]] = {}
    for term in sorted(terms, key=lambda term: term.rank):
        paths.setdefault(term.rank, []).append(term.site)
    ranks = list(paths)
    if len(ranks) > _FEW:
        ranks = [ranks[0], ranks[-1]]
    if len(ranks) > 1:
        covered = places.by_kind(term.site for term in terms)
        texts = [f"{rank} in {places.describe(paths[rank], covered)}" for rank in ranks]
        yield f"rank {', '.join(texts)}"


def _examples_of_pools(pools: Iterable[Pool], places: Places) -> Iterator[str]:
    """Name the modules of the largest pool of each role that has several."""
    members: dict[str, list[tuple[str, ...]]] = {}
    for pool in pools:
        members.setdefault(pool.role, []).append(pool.members)
    roles_of: dict[tuple[str, ...], list[str]] = {}
    for role, groups in members.items():
        largest = max(groups, key=len)
        if len(groups) > 1 and len(largest) > 1:
            roles_of.setdefault(largest, []).append(role)
    for largest, shared in roles_of.items():
        yield f"{places.describe(largest, {})} share {', '.join(shared)}, for example"


def trained_in_full(plan: Plan) -> list[WholeRow]:
    """Make a row for parameters trained in full that differ only by layer, in the model's order."""
    layers: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for trained in plan.trained:
        uses = " = ".join(re.sub(r"\.\d+(?=\.)", ".*", path) for path in trained.paths)
        block = block_of(trained.parameter)
        layers.setdefault((uses, trained.shape), []).append(int(block[1]) if block else 0)
    whole_rows = []
    for (uses, shape), numbers in layers.items():
        path = uses.replace("*", spans(numbers).replace(" ", ""), 1)
        whole_rows.append(WholeRow(path, len(numbers), shape, len(numbers) * prod(shape)))
    return whole_rows


def roles(plan: Plan) -> list[RoleRow]:
    """Make a row for each role of each share: pooled tensors first, then those of single modules."""
    tensors: dict[tuple[str, str], dict[str, Tensor]] = {(p.share, p.role): {} for p in plan.pools}
    for term in plan.terms:
        for role, name in term.tensors.items():
            tensors.setdefault((term.share, role), {})[name] = plan.tensor[name]
    order = {name: i for i, name in enumerate(plan.shares)}
    role_rows = []
    for place, role_tensors in sorted(tensors.items(), key=lambda item: order[item[0][0]]):
        owner = plan.references.get(place)
        share, role = place
        role_rows.append(
            RoleRow(
                share=share,
                role=role,
                pools=len(role_tensors),
                members=bounds(plan.users[name] for name in role_tensors),
                rows=bounds(tensor.shape[0] for tensor in role_tensors.values()),
                columns=bounds(tensor.shape[1] for tensor in role_tensors.values()),
                parameters=0 if owner else sum(tensor.size for tensor in role_tensors.values()),
                trainable=all(tensor.trainable for tensor in role_tensors.values()),
                start=" or ".join(dict.fromkeys(map(_start, role_tensors.values()))),
                owner=".".join(owner) if owner else None,
            )
        )
    return role_rows


def _start(tensor: Tensor) -> str:
    if tensor.init == "sparse":
        return f"sparse({tensor.amount:g})"
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


def bounds(values: Iterable[int]) -> Bounds:
    """Return the smallest and the largest number."""
    numbers = list(values)
    return min(numbers), max(numbers)


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
