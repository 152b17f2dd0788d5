"""Tell a plan back: what each share covers, adds and shares, in a table and a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from bishare_dsl.plan import Plan, Term
from bishare_dsl.plan.ranks import maximum_ranks
from bishare_dsl.show.rows import (
    ShareRow,
    bounds,
    held,
    rank_bounds,
    roles,
    shares,
    span,
    trained_in_full,
    via,
)
from bishare_dsl.show.table import Table
from bishare_dsl.spec.spec import MAGNITUDE
from bishare_dsl.transforms import PLAIN


def shared_table(plan: Plan, share: str | None = None) -> Table:
    """Make the table of what each share shares, or one share."""
    rows = [row for row in shares(plan) if share in (None, row.name)]
    names = [*dict.fromkeys(role for row in rows for role in row.tensors)]
    total = len(plan.sites)
    lines = [
        [
            row.name,
            f"{row.modules} of {total}" if row.modules < total else row.modules,
            span(bounds(row.ranks)) if row.ranks else "-",
            *(row.tensors.get(role, "-") for role in names),
            row.trainable,
            "-" if row.shared is None else _percent(row.shared),
        ]
        for row in rows
    ]
    left = {0, *range(3, 3 + len(names))}
    return Table(["share", "modules", "rank", *names, "numbers", "shared"], lines, left)


def conclusion(plan: Plan) -> str:
    """Say in one sentence how much of a plan is shared."""
    shared, private, frozen = held(plan)
    if not plan.terms:
        return "no share adds a term: parameters of the base are trained in full"
    facts: dict[str, list[str]] = {}
    for row in shares(plan):
        for fact in _facts(row):
            facts.setdefault(fact, []).append(f"`{row.name}`")
    notes = [f"{', '.join(names)}: {fact}" for fact, names in facts.items()]
    given = bounds({_rank(terms) for terms in plan.terms_of.values()} - {0} or {0})
    highest = rank_bounds(maximum_ranks(plan).values())
    notes += [f"an update has rank {span(highest)} at most"] * (highest not in (None, given))
    notes += [
        f"dropout is {rate:g}" for rate in sorted({term.dropout for term in plan.terms} - {0})
    ]
    notes += [f"`{row.path}` is trained in full" for row in trained_in_full(plan)]
    notes += [f"each adapter of a library has {plan.owned} parameters"] * plan.is_library
    told = "".join(f"; {note}" for note in notes)
    if shared:
        parts = shared / (shared + private), private / (shared + private)
        text = f"{_percent(parts[0])} of the trained parameters are shared"
        return f"{text}, {_percent(parts[1])} are private to one module{told}"
    if frozen and any(row.members[1] > 1 for row in roles(plan)):
        return f"no trained parameter is shared: modules share frozen tensors alone{told}"
    if {term.transform for term in plan.unscaled} == {PLAIN}:
        kind = "DoRA" if any(not t.options.get("plain", True) for t in plan.terms) else "LoRA"
        return f"nothing is shared: this is a {kind} of rank {span(given)}{told}"
    return f"nothing is shared: each module has private tensors{told}"


def _rank(terms: Iterable[Term]) -> int:
    return sum(term.rank for term in terms if not term.is_magnitude)


def _facts(share: ShareRow) -> Iterator[str]:
    """Say of a share what its row of the table does not."""
    if share.scales:
        yield f"scale {', '.join(f'{scale:.4g}' for scale in share.scales)}"
    if (written := via(share.transform, share.options)) not in ("-", MAGNITUDE):
        yield f"via {written}"
    if share.places:
        yield share.places


def _percent(fraction: float) -> str:
    percent = 100 * fraction
    if 0 < percent < 0.1 or 99.9 < percent < 100:
        return "<0.1%" if percent < 1 else ">99.9%"
    return f"{percent:.1f}%" if 0 < percent < 10 or 99 < percent < 100 else f"{percent:.0f}%"


def shared_data(plan: Plan) -> dict[str, Any]:
    """Return what is shared as data, for ``--json``."""
    return {"shares": [asdict(row) for row in shares(plan)], "conclusion": conclusion(plan)}


def told_lines(plan: Plan) -> list[str]:
    """Return the lines of the table and the sentence, for notes."""
    return "\n".join(map(str, told(plan))).split("\n")


def told(plan: Plan) -> list[str | Table]:
    """Return the table and the sentence, for a report."""
    table = shared_table(plan)
    return [*[table] * bool(table.rows), conclusion(plan)]
