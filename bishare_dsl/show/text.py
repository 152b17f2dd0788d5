"""Draw pictures for a terminal, with one character for each module and equal characters for a pool."""

from __future__ import annotations

from string import ascii_letters, digits

from bishare_dsl.show.picture import Grid, Panel, Picture
from bishare_dsl.show.rows import held, trained_in_full
from bishare_dsl.show.svg import summary
from bishare_dsl.show.table import wrapped

_CHARACTERS = ascii_letters + digits
_UNCOVERED = "."


def text(picture: Picture) -> str:
    """Draw a whole plan: its counts, then for each share layers across and modules down."""
    plan = picture.plan
    parts = [wrapped(f"{plan.spec} on {plan.base.name}: {held(plan)}")]
    for section in picture.sections:
        head = " ".join(filter(None, (section.row.name, section.key, section.settings)))
        lines = [wrapped(f"share {head}")]
        for panel in section.panels:
            line = f"{', '.join(panel.roles)}: {summary(panel)}"
            if len(panel.patches) > len(_CHARACTERS) and not panel.alone:
                line += f"; after {len(_CHARACTERS)} the letters begin again"
            lines += [wrapped(line), *_grid_lines(panel, panel.grid)]
        parts.append("\n".join(lines))
    if trained := trained_in_full(picture.plan):
        parts.append("\n".join(["trained in full:", *map(str, trained)]))
    return "\n\n".join(parts)


def _grid_lines(panel: Panel, grid: Grid) -> list[str]:
    if panel.alone and not panel.uncovered:
        return []
    lines = [[" "] * len(grid.layers) for _ in grid.names]
    for i in panel.uncovered:
        row, column = grid.places[i]
        lines[row][column] = _UNCOVERED
    for number, patch in enumerate(panel.patches):
        for i in patch.sites:
            row, column = grid.places[i]
            lines[row][column] = _CHARACTERS[number % len(_CHARACTERS)]
    ticks = "".join(f"{layer:<10}" for layer in grid.layers[::10]).rstrip()
    width = max(map(len, grid.rows))
    named = zip(grid.rows, lines, strict=True)
    return [
        f"{'layer':>{width}}  {ticks}",
        *(f"{name:>{width}}  {''.join(line)}".rstrip() for name, line in named),
    ]
