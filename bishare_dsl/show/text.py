"""Pictures for a terminal: a character for each module, the same for those that share."""

from __future__ import annotations

from string import ascii_letters, digits

from bishare_dsl.show.picture import Grid, Panel, Picture
from bishare_dsl.show.rows import held, trained_in_full
from bishare_dsl.show.svg import summary
from bishare_dsl.show.table import wrapped

_CHARACTERS = ascii_letters + digits
_UNCOVERED = "."


def text(picture: Picture) -> str:
    """Draw all of a plan: what is shared and what is private, then layers across, modules down."""
    plan = picture.plan
    parts = [wrapped(f"{plan.spec} on {plan.base.name}: {held(plan)}")]
    for section in picture.sections:
        head = " ".join(filter(None, (section.row.name, section.key, section.settings)))
        lines = [wrapped(f"share {head}")]
        for panel in section.panels:
            said = f"{', '.join(panel.roles)}: {summary(panel)}"
            if len(panel.patches) > len(_CHARACTERS) and not panel.alone:
                said += f"; after {len(_CHARACTERS)} the letters begin again"
            lines += [wrapped(said), *_drawn(panel, panel.grid)]
        parts.append("\n".join(lines))
    if trained := trained_in_full(picture.plan):
        parts.append("\n".join(["trained in full:", *map(str, trained)]))
    return "\n\n".join(parts)


def _drawn(panel: Panel, grid: Grid) -> list[str]:
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
