"""An analysis as tables, for a reader."""

from __future__ import annotations

from collections.abc import Sequence

from bishare_dsl.analyse import tables
from bishare_dsl.analyse.analysis import Analysis
from bishare_dsl.analyse.finding import finding
from bishare_dsl.analyse.maps import Map
from bishare_dsl.analyse.similarity import MEASURES
from bishare_dsl.show.table import Table


def parts(analyses: Sequence[Analysis], between: Sequence[Map]) -> list[str | Table]:
    """Say what was found; joint energy, the means of all measures beside those of chance, and ranks."""
    found: list[str | Table] = [finding(analyses)]
    for analysis in analyses:
        adapter = analysis.adapter
        starts = "starts taken away" if adapter.starts_known else "starts left in"
        found.append(
            f"{adapter.name}: {adapter.plan.spec} on {adapter.plan.base.name}, "
            f"{len(analysis.modules):,} modules, {starts}"
        )
        found.append(tables.joint(analysis, tables.by_gain(analysis)))
        found += [_likeness(analysis.charts), tables.kinds(analysis)]
    if between:
        found += ["between the adapters, module by module", _likeness(between)]
    return found


def _likeness(charts: Sequence[Map]) -> Table:
    titles = {measure.name: measure.title for measure in MEASURES}
    rows = [[titles[c.measure], c.title, _number(c.mean), _number(c.chance)] for c in charts]
    return Table(["measure", "of", "mean", "by chance"], rows, left={0, 1})


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
