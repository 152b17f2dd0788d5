"""A plan in a few rows: what each share costs, and what rank each kind of module gets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from bishare_dsl.transforms import Transform, Width, guarded, load_transform

if TYPE_CHECKING:
    from bishare_dsl.plan import Plan, Term

BYTES = 4
"""Of a parameter: adapters are saved in float32."""


@dataclass(frozen=True)
class ShareRow:
    """One share. ``pools`` counts its factor pairs and ``members`` the modules of a pool, least and most.

    ``ranks`` and ``scales`` are the distinct ones; ``options`` are the transform's, defaults included.
    """

    name: str
    pools: int
    members: tuple[int, int]
    transform: str
    options: dict[str, Any]
    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    dropout: float
    trainable: int
    share_of_total: float


@dataclass(frozen=True)
class KindRow:
    """The modules of one name and shape.

    ``effective_rank`` is the highest rank that the update of such a module can have, ``lora_rank`` the
    rank of its export as plain LoRA; least and most. None where some update is no matrix.
    """

    kind: str
    modules: int
    d_in: int
    d_out: int
    effective_rank: tuple[int, int] | None
    lora_rank: tuple[int, int] | None


def shares(plan: Plan) -> list[ShareRow]:
    """A row for each share that has parameters, in the spec's order."""
    members: dict[str, dict[tuple[Any, ...], int]] = {name: {} for name in plan.shares}
    for pool in plan.pools:
        sizes = members[pool.share]
        sizes[pool.key] = max(sizes.get(pool.key, 0), len(pool.members))
    terms: dict[str, list[Term]] = {name: [] for name in plan.shares}
    for term in plan.terms:
        terms[term.share].append(term)
    return [
        ShareRow(
            name=name,
            pools=len(members[name]),
            members=_bounds(members[name].values()),
            transform=terms[name][0].transform,
            options=terms[name][0].options,
            ranks=tuple(sorted({term.rank for term in terms[name]})),
            scales=tuple(sorted({term.scale for term in terms[name]})),
            dropout=terms[name][0].dropout,
            trainable=trainable,
            share_of_total=trainable / plan.trainable,
        )
        for name, trainable in plan.shares.items()
    ]


def kinds(plan: Plan) -> list[KindRow]:
    """A row for each kind and shape of target module, in the model's order."""
    transforms: dict[str, Transform] = {}

    @cache
    def reach(share: str, rank: int, width: Width) -> int:
        with guarded(transforms[share], "reach"):
            return transforms[share].reach(rank, width)

    counts: Counter[tuple[str, Width]] = Counter()
    effective: dict[tuple[str, Width], set[int]] = {}
    lora: dict[tuple[str, Width], set[int]] = {}
    nonlinear: set[tuple[str, Width]] = set()
    for site in plan.sites:
        width = Width(site.d_in, site.d_out)
        reached = 0
        for term in plan.terms_of[site.path]:
            if term.share not in transforms:
                transforms[term.share] = load_transform(term.transform, term.options)
            if term.linear:
                reached += reach(term.share, term.rank, width)
        row = site.kind, width
        if not all(term.linear for term in plan.terms_of[site.path]):
            nonlinear.add(row)
        counts[row] += 1
        effective.setdefault(row, set()).add(min(reached, *width))
        lora.setdefault(row, set()).add(plan.rows(site.path))
    return [
        KindRow(
            row[0],
            count,
            *row[1],
            None if row in nonlinear else _bounds(effective[row]),
            None if row in nonlinear else _bounds(lora[row]),
        )
        for row, count in counts.items()
    ]


def as_data(plan: Plan) -> dict[str, Any]:
    """The plan for a machine: counts, rows and tensors."""
    return {
        "spec": plan.spec,
        "params": plan.params,
        "model": plan.base.model_dump(),
        "trainable": plan.trainable,
        "frozen": plan.frozen,
        "all": plan.all,
        "trainable_percent": 100 * plan.trainable / plan.all,
        "bytes": BYTES * plan.trainable,
        "shares": [asdict(row) for row in shares(plan)],
        "kinds": [asdict(row) for row in kinds(plan)],
        "tensors": [tensor.model_dump() for tensor in plan.tensors],
    }


def as_text(plan: Plan) -> str:
    """The plan for a reader: two tables and the line that every tool of the field prints."""
    base, rows = plan.base, shares(plan)
    adapted = sum(1 for terms in plan.terms_of.values() if terms)
    head = (
        f"{plan.spec} on {base.name} ({base.family}, {base.layers} layers): "
        f"{adapted} modules adapted, {len(plan.tensors):,} tensors"
    )
    params = ", ".join(f"{name} = {value}" for name, value in plan.params.items())
    size = f"adapter: {BYTES * plan.trainable:,} bytes in float32"
    if plan.frozen:
        size += f", without {plan.frozen:,} frozen parameters"
    by_share = table(
        ["share", "pools", "modules each", "rank", "via", "scale", "trainable", "of total"],
        [
            [
                row.name,
                f"{row.pools:,}",
                _span(row.members),
                ", ".join(map(str, row.ranks)),
                _via(row),
                ", ".join(f"{scale:g}" for scale in row.scales),
                f"{row.trainable:,}",
                f"{row.share_of_total:.1%}",
            ]
            for row in rows
        ],
        left={0, 4},
    )
    by_kind = table(
        ["kind", "modules", "in", "out", "effective rank", "as LoRA"],
        [
            [
                row.kind,
                f"{row.modules:,}",
                f"{row.d_in:,}",
                f"{row.d_out:,}",
                _span(row.effective_rank),
                _span(row.lora_rank),
            ]
            for row in kinds(plan)
        ],
        left={0},
    )
    parts = [head, f"params: {params}" if params else "", "", by_share, "", by_kind, ""]
    parts += [size, plan.parameters_line]
    return "\n".join(part for i, part in enumerate(parts) if part or i != 1)


def table(head: list[str], rows: list[list[str]], left: set[int]) -> str:
    """Columns under their heads; numbers to the right, the columns of ``left`` to the left."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _via(row: ShareRow) -> str:
    """The transform as a spec writes it, without the switches that are off."""
    options = ", ".join(
        f"{name} = {'true' if value is True else value}"
        for name, value in row.options.items()
        if value is not None and value is not False
    )
    if row.transform == "Identity":
        return "-"
    return f"{row.transform}({options})" if options else row.transform


def _bounds(values: Iterable[int]) -> tuple[int, int]:
    found = list(values)
    return min(found), max(found)


def _span(bounds: tuple[int, int] | None) -> str:
    if bounds is None:
        return "-"
    least, most = bounds
    return f"{least:,}" if least == most else f"{least:,}-{most:,}"
