"""An analysis as tables, for a reader."""

from __future__ import annotations

from collections.abc import Sequence

from bishare_dsl.analyse import ranks
from bishare_dsl.analyse.analysis import NULLS, Analysis, Chart
from bishare_dsl.analyse.maps import LAYER
from bishare_dsl.analyse.similarity import MEASURES
from bishare_dsl.show.table import table


def text(analyses: Sequence[Analysis], between: Sequence[Chart]) -> str:
    """Write the means of all measures beside those of chance, joint energy, ranks and contributions."""
    parts = []
    for analysis in analyses:
        adapter = analysis.adapter
        starts = "starts taken away" if adapter.starts_known else "starts left in"
        parts.append(
            f"{adapter.name}: {adapter.plan.spec} on {adapter.plan.base.name}, "
            f"{len(analysis.modules):,} modules, {starts}"
        )
        parts += [_likeness(analysis.charts), _joint(analysis), _kinds(analysis)]
        parts += [_forms(analysis), *([_worth(analysis)] if analysis.worth else [])]
    if between:
        parts += ["between the adapters, module by module", _likeness(between)]
    return "\n\n".join(parts)


def _likeness(charts: Sequence[Chart]) -> str:
    titles = {measure.name: measure.title for measure in MEASURES}
    groups: dict[tuple[str, str], list[Chart]] = {}
    for chart in charts:
        # The kinds are in the files.
        where = chart.map.title if chart.map.title == LAYER else chart.map.title.split()[-1]
        where = {"layers": "layers of a kind"}.get(where, where)
        groups.setdefault((chart.map.measure, where), []).append(chart)
    rows = [
        [titles[measure], where, *(_number(_mean(means)) for means in _columns(group))]
        for (measure, where), group in groups.items()
    ]
    return table(["measure", "of", "mean", *NULLS], rows, left={0, 1})


def _columns(charts: Sequence[Chart]) -> list[list[float | None]]:
    return [[c.map.mean for c in charts], *([c.chance[null] for c in charts] for null in NULLS)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _joint(analysis: Analysis) -> str:
    rows = [
        [
            row.joint.key,
            row.joint.role,
            f"{row.joint.pools:,}",
            f"{row.kept:.1%}",
            *(f"{row.chance[null]:.1%}" for null in NULLS),
        ]
        for row in analysis.joint
    ]
    head = ["per", "common", "factors", f"kept at rank {analysis.rank}", *NULLS]
    return table(head, rows, left={0, 1})


def _kinds(analysis: Analysis) -> str:
    rows = ranks.kinds(analysis.modules)
    shares = list(dict.fromkeys(share for row in rows for share in row.parts))
    lines = [
        [
            row.kind,
            f"{row.modules:,}",
            f"{row.rank:.1f}",
            f"{row.stable_rank:.2f}",
            *(f"{row.parts.get(share, 0):.1%}" for share in shares),
        ]
        for row in rows
    ]
    head = ["kind", "modules", "rank", "stable rank", *(f"{share}'s part" for share in shares)]
    return table(head, lines, left={0})


def _forms(analysis: Analysis) -> str:
    rows = [[form.share, form.transform, form.a_b or "-"] for form in analysis.forms]
    return table(["share", "transform", "a_b"], rows, left={0, 1})


def _worth(analysis: Analysis) -> str:
    worth = analysis.worth
    assert worth is not None
    rows = [["base", f"{worth.base:.4f}", ""], ["adapter", f"{worth.adapted:.4f}", ""]]
    rows += [
        [f"without {share}", f"{loss:.4f}", f"{loss - worth.adapted:+.4f}"]
        for share, loss in worth.without.items()
    ]
    return table(["loss of a token", "", "more than with all"], rows, left={0})
