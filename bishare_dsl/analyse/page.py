"""Draw an analysis as one HTML page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from bishare_dsl.analyse import heat, tables
from bishare_dsl.analyse.analysis import Analysis
from bishare_dsl.analyse.finding import finding
from bishare_dsl.analyse.maps import Map
from bishare_dsl.analyse.similarity import MEASURES, Measure
from bishare_dsl.show.shell import Tab, figure, item, shell
from bishare_dsl.show.table import Table

_SHOWN = 8
"""Number of keys to show before the reader asks for more."""


def page(analyses: Sequence[Analysis], between: Sequence[Map]) -> str:
    """Draw the whole page: the summary and tables, then a tab for each measure."""
    charts: list[dict[str, Any]] = []
    names = ", ".join(analysis.adapter.name for analysis in analyses)
    tabs = [Tab("summary", "", _summary(analyses))]
    for measure in MEASURES:
        drawn = [
            (name, [chart for chart in found if chart.measure == measure.name])
            for name, found in (
                *((analysis.adapter.name, analysis.charts) for analysis in analyses),
                ("between adapters", between),
            )
        ]
        if shown := [part for part in drawn if part[1]]:
            tabs.append(Tab(measure.title, "", _measure(measure, shown, charts)))
    foot = (
        "Chance is measured, on random updates with the same singular values. Grey cells compare modules of "
        "different widths, which have no value. Point at a cell for its value."
    )
    of, script = f"on {analyses[0].adapter.plan.base.name}", Path(__file__).with_name("page.js")
    facts = [_facts(analyses)]
    return shell(names, of, facts, ("Measures", tabs), foot, {"charts": charts}, script)


def _facts(analyses: Sequence[Analysis]) -> str:
    return " · ".join(
        f"<b>{len(a.modules):,}</b> modules of {escape(a.adapter.name)}, "
        + tables.initial_values(a.adapter)
        for a in analyses
    )


def _summary(analyses: Sequence[Analysis]) -> str:
    return f'<p class="lead">{_code(finding(analyses))}</p>' + "".join(
        f"<h2>{escape(a.adapter.name)}: which modules could share a factor of rank {a.rank}?</h2>"
        f"{_joint(a)}<p>{_code(tables.caption(a))}</p>"
        f"<h2>{escape(a.adapter.name)}: rank, and what each share contributes</h2>"
        + _table(tables.kinds(a))
        for a in analyses
    )


def _code(text: str) -> str:
    """Write text as HTML, with backticks as code."""
    return re.sub("`(.+?)`", r"<code>\1</code>", escape(text))


def _joint(analysis: Analysis) -> str:
    """Show the keys that stand out most, and the rest on demand."""
    rows = tables.by_gain(analysis)
    first, rest = (
        _table(tables.joint(analysis, part), [_bar(row.kept, row.chance) for row in part])
        for part in (rows[:_SHOWN], rows[_SHOWN:])
    )
    more = f"<details><summary>{len(rows) - _SHOWN} more keys</summary>{rest}</details>"
    return f"{first}{more if len(rows) > _SHOWN else ''}"


def _bar(kept: float, chance: float) -> str:
    return f'<span><i style="width:{100 * kept:.1f}%"></i><b style="width:{100 * chance:.1f}%"></b></span>'


def _table(table: Table, bars: Sequence[str] = ()) -> str:
    """Write a table, with a bar after each row if there are bars."""
    rows = [_row("th", table, table.head, "<th></th>" if bars else "")]
    for i, line in enumerate(table.cells):
        rows.append(_row("td", table, line, f"<td class=bar>{bars[i]}</td>" if bars else ""))
    return f"<table{' class=bars' if bars else ''}>{''.join(rows)}</table>"


def _row(cell: str, table: Table, line: Sequence[str], bar: str) -> str:
    cells = (
        f"<{cell}{' class=word' if i in {*table.left} - {0} else ''}>{escape(text)}</{cell}>"
        for i, text in enumerate(line)
    )
    return f"<tr>{''.join(cells)}{bar}</tr>"


def _measure(
    measure: Measure, groups: Sequence[tuple[str, Sequence[Map]]], charts: list[dict[str, Any]]
) -> str:
    parts = [f"<p>{escape(measure.meaning)}</p>", _legend(signed=measure.signed)]
    for name, maps in groups:
        figures = []
        for chart in maps:
            figures.append(_figure(chart, len(charts)))
            charts.append(_data(chart))
        parts.append(f'<h2>{escape(name)}</h2><div class="panels wide">{"".join(figures)}</div>')
    return "".join(parts)


def _figure(chart: Map, number: int) -> str:
    mark, caption = f'data-chart="{number}"', heat.summary(chart)
    return figure(mark, chart.title, caption, heat.size(chart), heat.body(chart))


def _legend(*, signed: bool) -> str:
    ticks = [(-tick, "low") for tick in reversed(heat.TICKS)] if signed else []
    ticks += [(tick, "high") for tick in heat.TICKS]
    items = "".join(
        item(f"var(--{kind});opacity:{heat.opacity(tick):.2f}", f"{tick:g}") for tick, kind in ticks
    )
    return f"<ul>{items}</ul>"


def _data(chart: Map) -> dict[str, Any]:
    """Collect the data for the tooltip of a cell."""
    n = len(chart.labels)
    return {
        "labels": chart.labels,
        "left": heat.left_of(chart),
        "top": heat.size(chart)[1] - n * heat.cell_size(n) - 2,
        "cell": heat.cell_size(n),
        "values": [
            [round(value, 3) if value == value else None for value in row]
            for row in chart.values.tolist()
        ],
    }
