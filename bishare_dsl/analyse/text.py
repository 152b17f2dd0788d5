"""An analysis as tables, for a reader."""

from __future__ import annotations

from collections.abc import Sequence

from bishare_dsl.analyse import tables
from bishare_dsl.analyse.analysis import Analysis, Chart
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
        parts.append(_likeness(analysis.charts))
        shown = (tables.joint(analysis), tables.kinds(analysis))
        parts += [table(*one) for one in (*shown, *tables.worth(analysis))]
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
    return table(["measure", "of", "mean", "by chance"], rows, left={0, 1})


def _columns(charts: Sequence[Chart]) -> list[list[float | None]]:
    return [[c.map.mean for c in charts], [c.chance for c in charts]]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
