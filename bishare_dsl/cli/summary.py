"""Write a plan as data, or as text and tables."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bishare_dsl.diagnostics import escaped
from bishare_dsl.plan.file_bytes import file_bytes
from bishare_dsl.show import rows
from bishare_dsl.show.rows import BYTES, mib, span
from bishare_dsl.show.shared import shared_data, sharing_report
from bishare_dsl.show.table import Table, folded

if TYPE_CHECKING:
    from bishare_dsl.plan import Plan
    from bishare_dsl.spec import Spec


def as_data(plan: Plan, spec: Spec | None = None) -> dict[str, Any]:
    """Return the plan as data: counts, rows, sites, pools and tensors."""
    return {
        "spec": plan.spec,
        "params": plan.params,
        "model": plan.base.model_dump(exclude={"sites", "outside", "others", "head"}),
        "trainable": plan.trainable,
        "frozen": plan.frozen,
        **({"private": plan.private} if plan.is_library else {}),
        "all": plan.all,
        "trainable_percent": 100 * plan.trainable / plan.all,
        "bytes": BYTES * plan.stored,
        "bytes_by_dtype": file_bytes(plan),
        "memory": rows.memory(plan),
        **shared_data(plan, spec),
        "roles": [asdict(row) for row in rows.roles(plan)],
        "kinds": [asdict(row) for row in rows.kinds(plan)],
        **({"whole": [asdict(row) for row in rows.trained_in_full(plan)]} if plan.trained else {}),
        "sites": [site.model_dump() for site in plan.sites],
        "pools": [pool.model_dump() for pool in plan.pools],
        "tensors": [tensor.model_dump() for tensor in plan.tensors],
    }


def as_parts(plan: Plan, spec: Spec | None = None) -> list[str | Table]:
    """Describe a plan in tables, and in the line about trainable parameters that PEFT prints."""
    base = plan.base
    adapted = sum(1 for terms in plan.terms_of.values() if terms)
    head = (
        f"{plan.spec} on {base.name} ({base.family}, {base.layers} layers): "
        f"{adapted} modules adapted, {len(plan.tensors):,} tensors"
    )
    params = ", ".join(f"{name} = {value}" for name, value in plan.params.items())
    by_role = Table(
        ["share", "role", "pools", "modules each", "shape", "parameters"],
        [
            [
                row.share,
                row.role,
                row.pools,
                span(row.members),
                f"{span(row.rows)} x {span(row.columns)}",
                _parameters(row),
            ]
            for row in rows.roles(plan)
        ],
        left={0, 1},
    )
    by_kind = Table(
        ["kind", "modules", "in", "out", "maximum rank"],
        [
            [row.kind, row.modules, row.d_in, row.d_out, span(row.maximum_rank)]
            for row in rows.kinds(plan)
        ],
    )
    in_full = Table(
        ["trained in full", "parameters", "shape", "count"],
        [
            [row.path, row.parameters, " x ".join(map("{:,}".format, row.shape)), row.count]
            for row in rows.trained_in_full(plan)
        ],
    )
    first = escaped(head)
    if params:
        first += "\n" + escaped(f"params: {params}")
    tables = [*sharing_report(plan, spec)]
    if plan.terms:
        tables += [folded(by_role), by_kind]
    if plan.trained:
        tables.append(in_full)
    last = [_adapter_size(plan)]
    if plan.is_library:
        last.append(f"each adapter of a library: {plan.owned}")
    last += [_memory(plan), plan.parameters_line]
    return [first, *tables, "\n".join(last)]


def _parameters(row: rows.RoleRow) -> str:
    """Count the parameters of a role, or say whose they are."""
    if row.owner is not None:
        return f"those of {row.owner}"
    return f"{row.parameters:,}" if row.trainable else f"{row.parameters:,} frozen"


def _adapter_size(plan: Plan) -> str:
    left_out = plan.trainable + plan.frozen - plan.stored
    size, *smaller = file_bytes(plan).items()
    forms = ", ".join(f"{mib(count)} in {form}" for form, count in smaller)
    line = f"adapter: {size[1]:,} bytes ({mib(size[1])} MiB) in {size[0]}, {forms}"
    stored = plan.stored - plan.trainable
    if stored:
        line += f", with {stored:,} frozen parameters that start as the base's weights say"
    return f"{line}, without {left_out:,} frozen parameters" if left_out else line


def _memory(plan: Plan) -> str:
    sizes = {name: mib(size) for name, size in rows.memory(plan).items()}
    return (
        f"training, in MiB without activations: {sizes['weights']} weights, {sizes['gradients']} "
        f"gradients, {sizes['optimizer']} AdamW; base {sizes['base']} in bfloat16"
    )
