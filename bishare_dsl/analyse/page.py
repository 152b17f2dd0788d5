"""An analysis as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from bishare_dsl.analyse import heat, ranks
from bishare_dsl.analyse.analysis import NULLS, Analysis, Chart, JointRow
from bishare_dsl.analyse.similarity import MEASURES, Measure
from bishare_dsl.show.shell import Tab, figure, item, shell


def page(analyses: Sequence[Analysis], between: Sequence[Chart]) -> str:
    """Draw the whole page: what is shared and what each share does, then a tab for each measure."""
    charts: list[dict[str, Any]] = []
    names = ", ".join(analysis.adapter.name for analysis in analyses)
    tabs = [Tab("summary", "", _summary(analyses))]
    for measure in MEASURES:
        drawn = [
            (name, [chart for chart in found if chart.map.measure == measure.name])
            for name, found in (
                *((analysis.adapter.name, analysis.charts) for analysis in analyses),
                ("between adapters", between),
            )
        ]
        if shown := [part for part in drawn if part[1]]:
            tabs.append(Tab(measure.title, "", _measure(measure, shown, charts)))
    foot = (
        "Chance is measured: <b>independent</b> updates have the same singular values, and vectors that "
        "are drawn anew; <b>permuted</b> ones are the same updates with inputs and outputs in a random "
        "order. Grey cells cannot be compared: their widths differ. Point at a cell for its value."
    )
    of, script = f"on {analyses[0].adapter.plan.base.name}", Path(__file__).with_name("page.js")
    facts = [_facts(analyses)]
    return shell(names, of, facts, ("Measures", tabs), foot, {"charts": charts}, script)


def _facts(analyses: Sequence[Analysis]) -> str:
    return " · ".join(
        f"<b>{len(a.modules):,}</b> modules of {escape(a.adapter.name)}, "
        + ("starts taken away" if a.adapter.starts_known else "starts left in")
        for a in analyses
    )


def _summary(analyses: Sequence[Analysis]) -> str:
    return "".join(
        f"<h2>{escape(a.adapter.name)}: what common factors of rank {a.rank} keep of the updates</h2>"
        "<p>Of all energy, the sum of squares. The line in a bar is what independent updates give: a key "
        f"tells of sharing where the bar is longer.</p>{_joint(a.joint)}"
        f"<h2>{escape(a.adapter.name)}: rank, and what each share contributes</h2>"
        f"{_kinds(a)}{_forms(a)}{_worth(a)}"
        for a in analyses
    )


def _joint(rows: Sequence[JointRow]) -> str:
    lines = [["per", "common", "factors", "modules each", *NULLS, "kept", ""]]
    lines += [
        [
            escape(row.joint.key),
            row.joint.role,
            f"{row.joint.pools:,}",
            f"{row.joint.modules:,}",
            *(f"{row.chance[null]:.1%}" for null in NULLS),
            f"{row.kept:.1%}",
            _bar(row.kept, row.chance[NULLS[0]]),
        ]
        for row in rows
    ]
    return _table(lines, words={1})


def _bar(kept: float, chance: float) -> str:
    return (
        f'<span class="bar"><i style="width:{100 * kept:.1f}%"></i>'
        f'<b style="left:{100 * chance:.1f}%"></b></span>'
    )


def _kinds(analysis: Analysis) -> str:
    rows = ranks.kinds(analysis.modules)
    shares = list(dict.fromkeys(share for row in rows for share in row.parts))
    lines = [["kind", "modules", "rank", "stable rank", *map(escape, shares)]]
    lines += [
        [
            escape(row.kind),
            f"{row.modules:,}",
            f"{row.rank:.1f}",
            f"{row.stable_rank:.2f}",
            *(f"{row.parts.get(share, 0):.1%}" for share in shares),
        ]
        for row in rows
    ]
    return _table(lines)


def _forms(analysis: Analysis) -> str:
    lines = [["share", "transform", "a_b: shared and own rows of A"]]
    lines += [[escape(f.share), escape(f.transform), f.a_b or "-"] for f in analysis.forms]
    return f"<p></p>{_table(lines, words={1})}"


def _worth(analysis: Analysis) -> str:
    worth = analysis.worth
    if worth is None:
        return ""
    lines = [["loss of a token", "", "more than with all"], ["base", f"{worth.base:.4f}", ""]]
    lines.append(["adapter", f"{worth.adapted:.4f}", ""])
    lines += [
        [f"without {escape(share)}", f"{loss:.4f}", f"{loss - worth.adapted:+.4f}"]
        for share, loss in worth.without.items()
    ]
    return f"<p></p>{_table(lines)}"


def _table(lines: Sequence[Sequence[str]], words: frozenset[int] | set[int] = frozenset()) -> str:
    rows = []
    for n, line in enumerate(lines):
        cell = "td" if n else "th"
        cells = (
            f"<{cell}{' class=word' if i in words else ''}>{text}</{cell}>"
            for i, text in enumerate(line)
        )
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table>{''.join(rows)}</table>"


def _measure(
    measure: Measure, drawn: Sequence[tuple[str, Sequence[Chart]]], charts: list[dict[str, Any]]
) -> str:
    parts = [f"<p>{escape(measure.meaning)}</p>", _legend(signed=measure.signed)]
    for name, found in drawn:
        figures = []
        for chart in found:
            figures.append(_figure(chart, len(charts)))
            charts.append(_data(chart))
        parts.append(f'<h2>{escape(name)}</h2><div class="panels">{"".join(figures)}</div>')
    return "".join(parts)


def _figure(chart: Chart, number: int) -> str:
    mark, said = f'data-chart="{number}"', heat.summary(chart)
    return figure(mark, chart.map.title, said, heat.size(chart), heat.body(chart))


def _legend(*, signed: bool) -> str:
    ticks = [(-tick, "low") for tick in reversed(heat.TICKS)] if signed else []
    ticks += [(tick, "high") for tick in heat.TICKS]
    items = "".join(
        item(f"var(--{kind});opacity:{heat.opacity(tick):.2f}", f"{tick:g}") for tick, kind in ticks
    )
    return f"<ul>{items}</ul>"


def _data(chart: Chart) -> dict[str, Any]:
    """Collect what the page's script tells of a cell."""
    n = len(chart.map.labels)
    return {
        "labels": chart.map.labels,
        "left": heat.left_of(chart),
        "top": heat.size(chart)[1] - n * heat.cell_size(n) - 2,
        "cell": heat.cell_size(n),
        "values": [
            [round(value, 3) if value == value else None for value in row]
            for row in chart.map.values.tolist()
        ],
    }
