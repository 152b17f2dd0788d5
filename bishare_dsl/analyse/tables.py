"""Write an analysis as text and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bishare_dsl.analyse import ranks
from bishare_dsl.analyse.analysis import Analysis, JointRow
from bishare_dsl.analyse.finding import finding
from bishare_dsl.show.table import Table


def parts(analyses: Sequence[Analysis]) -> list[str | Table]:
    """Return the finding, then for each adapter the tables of joint energy and of ranks."""
    result: list[str | Table] = [finding(analyses)]
    for analysis in analyses:
        adapter, plan = analysis.adapter, analysis.adapter.plan
        modules = f"{plan.spec} on {plan.base.name}, {len(analysis.modules):,} modules"
        initial = "initial values subtracted"
        if not adapter.starts_known:
            initial = "initial values unknown, so not subtracted"
        result += [f"{adapter.name}: {modules}, {initial}"]
        result += [joint(analysis, by_gain(analysis)), caption(analysis), kinds(analysis)]
    return result


def caption(analysis: Analysis) -> str:
    """Explain the table of `joint` in plain words."""
    return (
        "How to read a row: the modules that have equal values of the key `per` form a group. If each group "
        f"shared one factor of rank {analysis.rank} (column `shared`), `kept` is the part of the trained "
        "updates, measured by their squared norm, that would survive. `by chance` is the same for unrelated "
        "random updates: only the difference, `above chance`, speaks for sharing. Keys joined by `=` form "
        "equal groups on this model."
    )


def by_gain(analysis: Analysis) -> list[JointRow]:
    """Sort the joint energies by their excess over chance, with one row for keys with equal groups."""
    folded: dict[object, JointRow] = {}
    for row in sorted(analysis.joint, key=lambda row: row.gain, reverse=True):
        same = row.joint.role, row.joint.groups or row.joint.key
        first = folded.setdefault(same, row)
        if first is not row:
            key = f"{first.joint.key} = {row.joint.key}"
            folded[same] = replace(first, joint=replace(first.joint, key=key))
    return list(folded.values())


def joint(analysis: Analysis, rows: Sequence[JointRow]) -> Table:
    """Make the table of the energy that common factors keep, compared with chance."""
    head = [
        "per",
        "shared",
        "groups",
        "modules each",
        f"kept at rank {analysis.rank}",
        "by chance",
        "above chance",
    ]
    lines = [
        [
            row.joint.key,
            row.joint.role,
            row.joint.pools,
            row.joint.modules,
            f"{row.kept:.1%}",
            f"{row.chance:.1%}",
            f"{100 * row.gain:+.1f}",
        ]
        for row in rows
    ]
    return Table(head, lines, frozenset({0, 1}))


def kinds(analysis: Analysis) -> Table:
    """Make the table of ranks by kind, with each share's part of the update."""
    kind_rows = ranks.kinds(analysis.modules)
    shares = list(dict.fromkeys(share for row in kind_rows for share in row.parts))
    head = ["kind", "modules", "rank", "stable rank", *(f"{share}'s part" for share in shares)]
    rows = [
        [
            row.kind,
            row.modules,
            f"{row.rank:.1f}",
            f"{row.stable_rank:.2f}",
            *(f"{row.parts.get(share, 0):.1%}" for share in shares),
        ]
        for row in kind_rows
    ]
    return Table(head, rows)
