"""Tell a plan back: what each share covers, adds and shares, in a table and a fact a line."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import asdict
from typing import Any

from bishare_dsl.plan import Plan, Term
from bishare_dsl.plan.in_full import NONE
from bishare_dsl.plan.ranks import maximum_ranks
from bishare_dsl.show import rows
from bishare_dsl.show.places import Places
from bishare_dsl.show.rows import ShareRow
from bishare_dsl.show.table import Table, folded, some_lines, some_names
from bishare_dsl.spec import Binary, Ref, Spec
from bishare_dsl.spec.walk import names_read
from bishare_dsl.transforms import PLAIN


def shared_table(plan: Plan, shares: Sequence[ShareRow]) -> Table:
    """Make the table of what shares share."""
    names = [*dict.fromkeys(role for row in shares for role in row.tensors)]
    total = len(plan.sites)
    lines = [
        [
            row.name,
            f"{row.modules} of {total}" if row.modules < total else row.modules,
            rows.span(rows.bounds(row.ranks)) if row.ranks else "-",
            *(row.tensors.get(role, "-") for role in names),
            row.trainable,
            "-" if row.shared is None else _percent(row.shared),
        ]
        for row in shares
    ]
    left = {0, *range(3, 3 + len(names))}
    return folded(Table(["share", "modules", "rank", *names, "numbers", "shared"], lines, left))


def conclusion(
    plan: Plan,
    spec: Spec | None,
    shares: Sequence[ShareRow],
    list_names: Callable[[Sequence[str]], str] = ", ".join,
) -> list[str]:
    """Say how much of a plan is shared, then what its table does not say, a fact a line.

    The ``spec`` says in addition what scales and options depend on. ``list_names`` writes the names of
    shares.
    """
    names = {row.name for row in shares}
    notes = _facts(spec, shares, list_names)
    ranks = {_rank(terms, names) for terms in plan.terms_of.values()}
    ranks_of_terms = rows.bounds(ranks - {0} or {0})
    highest = rows.rank_bounds({*maximum_ranks(plan).values()} - {0} or {0})
    if highest not in (None, ranks_of_terms):
        notes.append(f"an update has rank {rows.span(highest)} at most")
    notes += [f"`{row.path}` is trained in full" for row in rows.trained_in_full(plan)]
    if plan.is_library:
        notes.append(f"each adapter of a library has {plan.owned} parameters")
    if spec is not None and spec.train == NONE:
        notes.append("nothing of the base is trained in full, not even a new head")
    if plan.sites:
        places = Places(plan)
        every = places.by_kind(site.path for site in plan.base.sites)
        targets = places.describe((site.path for site in plan.sites), every)
        notes.append(f"the targets are {targets or 'all linear layers of the blocks'}")
    return [_verdict(plan, rows.span(ranks_of_terms)), *notes]


def _facts(
    spec: Spec | None, shares: Sequence[ShareRow], list_names: Callable[[Sequence[str]], str]
) -> list[str]:
    """Write the facts of shares, a line for the shares that have the same ones."""
    facts = [(row.name, fact) for row in shares for fact in row.facts]
    if spec is not None:
        facts.extend(_written(spec, {row.name for row in shares}))
    names_of: dict[str, list[str]] = defaultdict(list)
    for name, fact in facts:
        names_of[fact].append(f"`{name}`")
    of_names: dict[str, list[str]] = defaultdict(list)
    for fact, names in names_of.items():
        of_names[list_names(names)].append(fact)
    return [f"{names}: {'; '.join(lines)}" for names, lines in of_names.items()]


def _verdict(plan: Plan, rank: str) -> str:
    shared, private, frozen = rows.held(plan.tensors, plan.users)
    if not plan.terms:
        return "no share adds a term: parameters of the base are trained in full"
    if shared:
        total = shared + private
        text = f"{_percent(shared / total)} of the trained parameters are shared"
        return f"{text}, {_percent(private / total)} are private to one module"
    if frozen and any(row.members[1] > 1 for row in rows.roles(plan)):
        return "no trained parameter is shared: modules share frozen tensors alone"
    nothing = "nothing is shared"
    if plan.is_library:
        nothing = "nothing is shared within an adapter"
    if {term.transform for term in plan.update_terms} == {PLAIN}:
        kind = "DoRA" if any(not t.options.get("plain", True) for t in plan.terms) else "LoRA"
        return f"{nothing}: this is a {kind} of rank {rank}"
    return f"{nothing}: each module has private tensors"


def _rank(terms: Iterable[Term], own: Set[str]) -> int:
    return sum(term.rank for term in terms if term.share in own and not term.is_magnitude)


def _written(spec: Spec, names: Set[str]) -> Iterator[tuple[str, str]]:
    """Say of shares how their scale is computed, and which params of an equal transform they do not read."""
    from bishare_dsl.language.text import expression_text

    params = spec.values.keys()
    of_transform: dict[str | None, set[str]] = defaultdict(set)
    reads = {s.name: {name for name, _ in names_read(s.via, ())} & params for s in spec.shares}
    vias = {
        share.name: " then ".join(step.transform for step in share.steps.values())
        for share in spec.shares
        if share.via
    }
    for name, transform in vias.items():
        of_transform[transform] |= reads[name]
    for share in spec.shares:
        if share.name not in names:
            continue
        settings = spec.settings(share)
        scale = settings.scale
        if scale is None and settings.alpha is not None:
            rank = Ref.model_construct(ref="rank")
            scale = Binary.model_construct(op="/", left=settings.alpha, right=rank)
        elif settings.alpha is not None and isinstance(scale, int | float):
            yield share.name, "alpha is not read"
        if not isinstance(scale, int | float | None):
            yield share.name, f"the scale is {expression_text(scale)}"
        lacking = of_transform[vias.get(share.name)] - reads[share.name]
        if lacking:
            yield share.name, f"reads no param {', '.join(sorted(lacking))}"


def _percent(fraction: float) -> str:
    percent = 100 * fraction
    if 0 < percent < 0.1 or 99.9 < percent < 100:
        return "<0.1%" if percent < 1 else ">99.9%"
    return f"{percent:.1f}%" if 0 < percent < 10 or 99 < percent < 100 else f"{percent:.0f}%"


def shared_data(plan: Plan, spec: Spec | None = None) -> dict[str, Any]:
    """Return what is shared as data, for ``--json``."""
    shares = rows.shares(plan)
    return {
        "shares": [asdict(row) for row in shares],
        "conclusion": "; ".join(conclusion(plan, spec, shares)),
    }


def sharing_lines(plan: Plan) -> list[str]:
    """Return the lines of the table and of what follows it, for notes."""
    return "\n".join(map(str, sharing_report(plan))).split("\n")


def sharing_report(plan: Plan, spec: Spec | None = None) -> list[str | Table]:
    """Return the table and what follows it, for a report."""
    shares = rows.shares(plan)
    lines = "\n".join(some_lines(conclusion(plan, spec, shares, some_names)))
    if not shares:
        return [lines]
    return [shared_table(plan, shares), lines]
