"""Compare the costs of keeping many adapters of a spec, by counting alone."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Any

from bishare_dsl.plan import Plan
from bishare_dsl.plan.file_bytes import file_bytes
from bishare_dsl.show.rows import lora_size
from bishare_dsl.show.table import Table

NUMBER_BYTES = 2
"""Bytes of a number in bfloat16, in a file and in an engine."""

LORA_RANK = 8
_LEAST_COMMON_FRACTION = 0.01
"""A library is listed if its adapters have at least this fraction of the trained numbers in common."""


@dataclass(frozen=True)
class Cost:
    """One way to keep many adapters, in numbers (values, whatever their bits).

    Attributes:
        way: a description.
        own: numbers per adapter, in its file.
        once: numbers that all adapters share, in one file.
        slot: numbers per adapter in a slot of an engine, in compact mode; None for a nonlinear update.
        slot_once: numbers that all slots share.
        own_bytes: bytes of ``own`` in bfloat16. Tensors that select other values stay whole.
        once_bytes: bytes of ``once`` in bfloat16.
    """

    way: str
    own: int
    once: int
    slot: int | None
    slot_once: int
    own_bytes: int
    once_bytes: int

    def disk(self, adapters: int) -> int:
        """Count the bytes of the adapters' files in bfloat16."""
        return self.once_bytes + adapters * self.own_bytes

    def slots(self, adapters: int) -> int | None:
        """Count the bytes of the adapters' slots in compact mode."""
        if self.slot is None:
            return None
        return NUMBER_BYTES * (self.slot_once + adapters * self.slot)

    def fit(self, memory: int) -> int | None:
        """Count the adapters whose slots fit into ``memory`` bytes."""
        left = memory // NUMBER_BYTES - self.slot_once
        return max(left // self.slot, 0) if self.slot else None

    def data(self, adapters: int, memory: int | None) -> dict[str, Any]:
        """Return the row as data, for ``--json``."""
        counts = {key: n for key, n in vars(self).items() if not key.endswith("bytes")}
        return {
            **counts,
            "disk_bytes": self.disk(adapters),
            "slots_bytes": self.slots(adapters),
            "fit": None if memory is None else self.fit(memory),
        }


def costs(plan: Plan) -> list[Cost]:
    """Compare ways to keep adapters of a plan: separate, as a library, and as plain LoRAs on its modules."""
    frozen = frozenset(tensor.name for tensor in plan.tensors if not tensor.trainable)
    if plan.is_library:
        ways = [("library, as the spec says", plan.common)]
    else:
        ways = [("separate adapters", frozen), *_libraries(plan, frozen)]
    per_rank = lora_size(plan, 1)
    rows = [_cost(plan, label, common) for label, common in ways]
    near = max(1, round(rows[0].own / per_rank)) if per_rank else 1
    lora = {LORA_RANK: f"LoRA r={LORA_RANK}", near: f"LoRA r={near}, nearest in bytes"}
    return rows + [_lora_cost(label, r * per_rank) for r, label in lora.items() if per_rank]


def _lora_cost(label: str, numbers: int) -> Cost:
    return Cost(
        way=label,
        own=numbers,
        once=0,
        slot=numbers,
        slot_once=0,
        own_bytes=NUMBER_BYTES * numbers,
        once_bytes=0,
    )


def _cost(plan: Plan, label: str, common: frozenset[str]) -> Cost:
    trained = {tensor.name for tensor in plan.tensors if tensor.trainable}
    # A slot holds what a magnitude of the base's weights becomes: a number for each output of its module.
    scaled = [term for term in plan.terms if term.is_magnitude and not term.options["plain"]]
    used = {name for term in plan.terms if term not in scaled for name in term.tensors.values()}
    changes = sum(plan.tensor[term.tensors["mu"]].size for term in scaled)

    def count(names: Set[str]) -> int:
        return sum(plan.tensor[name].size for name in names)

    slot = None
    slot_once = 0
    if all(term.linear for term in plan.update_terms):
        slot = count(used - common) + changes
        slot_once = count(used & common)
    return Cost(
        way=label,
        own=count(trained - common),
        once=count(trained & common),
        slot=slot,
        slot_once=slot_once,
        own_bytes=file_bytes(plan, trained - common)["bfloat16"],
        once_bytes=file_bytes(plan, trained & common)["bfloat16"],
    )


def _libraries(plan: Plan, frozen: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield the libraries that a plan could become: one factor, one share, or all but one are common."""
    pooled: dict[str, dict[str, set[str]]] = {}
    for pool in plan.pools:
        if pool.tensor not in frozen:
            pooled.setdefault(pool.share, {}).setdefault(pool.role, set()).add(pool.tensor)
    trained = {tensor.name: tensor.size for tensor in plan.tensors if tensor.trainable}
    ways: dict[frozenset[str], str] = {}
    for share, by_role in pooled.items():
        if len(by_role) > 1:
            for role, names in by_role.items():
                ways.setdefault(frozenset(names), f"library, {role} of `{share}` is common")
        ways.setdefault(frozenset().union(*by_role.values()), f"library, `{share}` is common")
    if len(pooled) > 2:
        for share in pooled:
            others: set[str] = set()
            for other, by_role in pooled.items():
                if other != share:
                    others.update(*by_role.values())
            ways.setdefault(frozenset(others), f"library, only `{share}` is private")
    whole = sum(trained.values())
    for common, label in ways.items():
        if _LEAST_COMMON_FRACTION * whole <= sum(trained[name] for name in common) < whole:
            yield label, common | frozen


def table(rows: list[Cost], adapters: int, memory: int | None) -> Table:
    """Make a table with a row for each way."""
    if memory is None:
        head = ["way", "files", "slots"]
        return Table(
            head,
            [[row.way, size(row.disk(adapters)), size(row.slots(adapters))] for row in rows],
        )
    head = ["way", "fit", "files", "slots"]
    return Table(
        head,
        [
            [row.way, row.fit(memory), size(row.disk(adapters)), size(row.slots(adapters))]
            for row in rows
        ],
    )


def size(count: int | None) -> str:
    """Write bytes in the unit of files: ``2.8 GB``."""
    if count is None:
        return "-"
    for unit, unit_bytes in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= unit_bytes:
            return f"{count / unit_bytes:,.{int(count < 100 * unit_bytes)}f} {unit}"
    return f"{count:,} B"
