"""Draw heat maps as SVG for light and dark pages: the higher a value, the more opaque its cell."""

from __future__ import annotations

import math
from html import escape

from bishare_dsl.analyse.maps import Map, shown
from bishare_dsl.show.svg import CHARACTER

TICKS = (0.01, 0.05, 0.2, 0.5, 1.0)
_LEVELS = 48
_TOP = 18


def opacity(value: float) -> float:
    """Return the opacity of a value: its square root, so that small values differ visibly from 0."""
    return math.sqrt(min(abs(value), 1.0))


def cell_size(n: int) -> int:
    """Choose the size of a cell of an n by n map, in pixels."""
    return next((s for most, s in ((4, 34), (12, 24), (34, 12), (84, 6), (200, 4)) if n <= most), 2)


def left_of(chart: Map) -> int:
    """Return the width of the column of row names."""
    return math.ceil(max(map(len, chart.labels)) * CHARACTER) + 10


def size(chart: Map) -> tuple[int, int]:
    """Return the width and height of a map with its labels."""
    n = len(chart.labels)
    return left_of(chart) + n * cell_size(n) + 4, _TOP + n * cell_size(n) + 2


def body(chart: Map) -> str:
    """Draw the cells, as one path per level of colour, and the names of the rows."""
    labels, n = chart.labels, len(chart.labels)
    step, left = cell_size(n), left_of(chart)
    levels: dict[tuple[str, int], list[str]] = {}
    for i, row in enumerate(chart.values.tolist()):
        for j, value in enumerate(row):
            kind, level = "none", _LEVELS
            if math.isfinite(value):
                kind, level = "low" if value < 0 else "high", round(_LEVELS * opacity(value))
            if level:
                cell = f"M{left + j * step} {_TOP + i * step}h{step}v{step}h-{step}z"
                levels.setdefault((kind, level), []).append(cell)
    drawn = [
        f'<path class="{kind}" fill-opacity="{level / _LEVELS:.2g}" d="{"".join(cells)}"/>'
        for (kind, level), cells in sorted(levels.items())
    ]
    side = n * step
    drawn.append(f'<rect class="frame" x="{left}" y="{_TOP}" width="{side}" height="{side}"/>')
    shown = next(every for every in (1, 2, 4, 8, 16, 32, 64) if every * step >= 11 or every == 64)
    numbers = all(label.isdecimal() for label in labels)
    for i in range(0, n, shown):
        middle = i * step + step / 2
        label = escape(labels[i])
        drawn.append(
            f'<text class="end small" x="{left - 6}" y="{_TOP + middle + 3.5:g}">{label}</text>'
        )
        if numbers and i % (2 * shown) == 0:
            drawn.append(
                f'<text class="middle small muted" x="{left + middle:g}" y="{_TOP - 6}">{label}</text>'
            )
    return f'<g shape-rendering="crispEdges">{"".join(drawn)}</g>'


def summary(chart: Map) -> str:
    """Describe the mean of a map and the mean by chance."""
    if chart.mean is None:
        return "no two modules have equal widths"
    return f"mean {shown(chart.mean)}; by chance {shown(chart.chance)}"
