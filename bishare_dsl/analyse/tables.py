"""An analysis as text and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bishare_dsl.analyse import ranks
from bishare_dsl.analyse.analysis import Analysis, JointRow
from bishare_dsl.analyse.finding import finding
from bishare_dsl.analyse.maps import Map, shown
from bishare_dsl.analyse.read import AdapterUpdates
from bishare_dsl.analyse.similarity import MEASURES
from bishare_dsl.show.table import Table


def parts(analyses: Sequence[Analysis], between: Sequence[Map]) -> list[str | Table]:
    """Say what was found; joint energy, the means of all measures beside those of chance, and ranks."""
    found: list[str | Table] = [finding(analyses)]
    for analysis in analyses:
        adapter = analysis.adapter
        found.append(
            f"{adapter.name}: {adapter.plan.spec} on {adapter.plan.base.name}, "
            f"{len(analysis.modules):,} modules, {initial_values(adapter)}"
        )
        found += [joint(analysis, by_gain(analysis)), caption(analysis)]
        found += [_likeness(analysis.charts), kinds(analysis)]
    if between:
        found += ["between the adapters, module by module", _likeness(between)]
    return found


def _likeness(charts: Sequence[Map]) -> Table:
    titles = {measure.name: measure.title for measure in MEASURES}
    rows = [[titles[c.measure], c.title, shown(c.mean), shown(c.chance)] for c in charts]
    return Table(["measure", "of", "mean", "by chance"], rows, left={0, 1})


def initial_values(adapter: AdapterUpdates) -> str:
    """Say whether the random initial values of A are subtracted before updates are compared."""
    known = adapter.starts_known
    return "initial values subtracted" if known else "initial values unknown, so not subtracted"


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
    """Return what shared factors keep, most above chance first; keys with equal groups are one row."""
    folded: dict[object, JointRow] = {}
    for row in sorted(analysis.joint, key=lambda row: row.gain, reverse=True):
        same = row.joint.role, row.joint.groups or row.joint.key
        first = folded.setdefault(same, row)
        if first is not row:
            key = f"{first.joint.key} = {row.joint.key}"
            folded[same] = replace(first, joint=replace(first.joint, key=key))
    return list(folded.values())


def joint(analysis: Analysis, rows: Sequence[JointRow]) -> Table:
    """Make the table of what common factors keep, beside chance."""
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
            f"{row.joint.pools:,}",
            f"{row.joint.modules:,}",
            f"{row.kept:.1%}",
            f"{row.chance:.1%}",
            f"{100 * row.gain:+.1f}",
        ]
        for row in rows
    ]
    return Table(head, lines, frozenset({0, 1}))


def kinds(analysis: Analysis) -> Table:
    """Make the table of ranks by kind, and of each share's part of what is added."""
    found = ranks.kinds(analysis.modules)
    shares = list(dict.fromkeys(share for row in found for share in row.parts))
    head = ["kind", "modules", "rank", "stable rank", *(f"{share}'s part" for share in shares)]
    rows = [
        [
            row.kind,
            f"{row.modules:,}",
            f"{row.rank:.1f}",
            f"{row.stable_rank:.2f}",
            *(f"{row.parts.get(share, 0):.1%}" for share in shares),
        ]
        for row in found
    ]
    return Table(head, rows)
