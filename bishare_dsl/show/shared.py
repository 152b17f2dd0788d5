"""Say what each share of a plan shares: how many modules use each tensor, in a table and a sentence."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from bishare_dsl.plan import Plan
from bishare_dsl.plan.in_full import TRAIN
from bishare_dsl.show.rows import RoleRow, bounds, held, roles, shares, span, trained_in_full
from bishare_dsl.show.table import Table
from bishare_dsl.transforms import PLAIN


@dataclass(frozen=True)
class SharedRow:
    """A share: its modules, for each role how many modules use a tensor, and the fraction that is shared.

    ``fraction`` is None for a share without trained parameters.
    """

    share: str
    modules: int
    tensors: dict[str, str]
    fraction: float | None


def shared_rows(plan: Plan) -> list[SharedRow]:
    """Make a row for each share, in the spec's order."""
    own = {tensor.share for tensor in plan.tensors if tensor.like is None}
    rows, of_roles = [], roles(plan)
    for share in shares(plan):
        if share.name not in own or share.name == TRAIN:
            continue
        tensors = [row for row in of_roles if row.share == share.name]
        trained = sum(row.parameters for row in tensors if row.trainable)
        shared = sum(row.parameters for row in tensors if row.trainable and row.members[1] > 1)
        words = {row.role: _users(row) for row in tensors}
        fraction = shared / trained if trained else None
        rows.append(SharedRow(share.name, share.modules, words, fraction))
    return rows


def _users(row: RoleRow) -> str:
    users = f"{'for' if row.pools == 1 else 'each by'} {span(row.members)} modules"
    users = "private" if row.members[1] == 1 else users
    start = f", from {row.init}" if row.init.startswith("svd") else ""
    return f"{row.pools:,}, {users}{'' if row.trainable else ', frozen'}{start}"


def shared_table(plan: Plan, share: str | None = None) -> Table:
    """Make the table of what each share shares, or one share."""
    rows = [row for row in shared_rows(plan) if share in (None, row.share)]
    names = [*dict.fromkeys(role for row in rows for role in row.tensors)]
    total = len(plan.sites)
    lines = [
        [
            row.share,
            row.modules if row.modules == total else f"{row.modules} of {total}",
            *(row.tensors.get(role, "-") for role in names),
            "-" if row.fraction is None else _percent(row.fraction),
        ]
        for row in rows
    ]
    words = {0, *range(2, 2 + len(names))}
    return Table(["share", "modules", *names, "shared numbers"], lines, left=words)


def conclusion(plan: Plan) -> str:
    """Say in one sentence how much of a plan is shared."""
    shared, private, frozen = held(plan)
    if not plan.terms:
        return "no share adds a term: parameters of the base are trained in full"
    notes = [
        f"`{row.name}` has scale {', '.join(f'{scale:.4g}' for scale in row.scales)}"
        for row in shares(plan)
        if {*row.scales} - {1}
    ]
    rates = {term.dropout for term in plan.terms} - {0}
    notes += [f"dropout is {rate:g}" for rate in sorted(rates)]
    notes += [f"`{row.path}` is trained in full" for row in trained_in_full(plan)]
    notes += [f"each adapter of a library has {plan.owned} parameters"] * plan.is_library
    told = "".join(f"; {note}" for note in notes)
    if shared:
        parts = shared / (shared + private), private / (shared + private)
        text = f"{_percent(parts[0])} of the trained parameters are shared"
        return f"{text}, {_percent(parts[1])} are private to one module{told}"
    if frozen and any(row.members[1] > 1 for row in roles(plan)):
        return f"no trained parameter is shared: modules share frozen tensors alone{told}"
    transforms = {term.transform for term in plan.unscaled}
    text = "nothing is shared: each module has private tensors"
    if transforms == {PLAIN}:
        rows = {
            sum(t.rows for t in terms if not t.is_magnitude) for terms in plan.terms_of.values()
        }
        kind = "DoRA" if plan.has_magnitudes else "LoRA"
        text = f"nothing is shared: this is a {kind} of rank {span(bounds(rows - {0}))}"
    elif transforms:
        text += f", also with `via {'` and `via '.join(sorted(transforms))}`"
    return text + told


def _percent(fraction: float) -> str:
    percent = 100 * fraction
    if 0 < percent < 0.1 or 99.9 < percent < 100:
        return "<0.1%" if percent < 1 else ">99.9%"
    return f"{percent:.1f}%" if 0 < percent < 10 or 99 < percent < 100 else f"{percent:.0f}%"


def shared_data(plan: Plan) -> dict[str, Any]:
    """Return what is shared as data, for ``--json``."""
    return {"shares": [asdict(row) for row in shared_rows(plan)], "conclusion": conclusion(plan)}


def told_lines(plan: Plan) -> list[str]:
    """Return the lines of the table and the sentence, for notes."""
    return "\n".join(map(str, told(plan))).split("\n")


def told(plan: Plan) -> list[str | Table]:
    """Return the table and the sentence, for a report."""
    table = shared_table(plan)
    return [*[table] * bool(table.rows), conclusion(plan)]
