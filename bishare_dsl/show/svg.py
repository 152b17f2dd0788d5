"""Draw pictures as SVG: one panel for a page, or a whole plan in one file."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from math import ceil
from pathlib import Path

from bishare_dsl.show.picture import Grid, Panel, Picture
from bishare_dsl.show.rows import bounds, span, trained_in_full

CHARACTER = 6.7
"""The width of a character of 11 pixels in most monospaced fonts."""
_GAP_OF_GROUPS = 6
_HEAD = 20
_WIDTH = 1000
_HATCH = 6
"""Pixels between the lines across frozen cells."""


@dataclass(frozen=True)
class Scale:
    """Sizes of a grid in pixels: of a cell with the gap after it, and of the column of row names."""

    across: int
    down: int
    gap: int
    left: int
    tops: tuple[int, ...]

    @classmethod
    def of(cls, grid: Grid) -> Scale:
        columns, rows = len(grid.layers), len(grid.names)
        across = next(
            (s for most, s in ((12, 28), (34, 16), (48, 14), (84, 11)) if columns <= most), 8
        )
        down = next((s for most, s in ((8, 24), (14, 20), (32, 15), (80, 13)) if rows <= most), 11)
        tops, top = [], _HEAD
        for i in range(rows):
            top += _GAP_OF_GROUPS if i and grid.groups[i] != grid.groups[i - 1] else 0
            tops.append(top)
            top += down
        longest = max(map(len, grid.rows), default=0)
        gap = 1 if min(across, down) < 13 else 2
        return cls(across, down, gap, ceil(longest * CHARACTER) + 10, (*tops, top))

    def size(self, grid: Grid) -> tuple[int, int]:
        return self.left + len(grid.layers) * self.across + 4, self.tops[-1]


def panel_body(panel: Panel) -> str:
    """Draw the cells of a panel, hatched if frozen, with the names of rows and columns."""
    grid = panel.grid
    scale = Scale.of(grid)
    drawn = [_axes(grid, scale)]
    taken: set[tuple[int, int]] = set()
    if panel.uncovered:
        cells = _cells(panel.uncovered, grid, scale, taken, hatched=False)
        drawn.append(f'<g class="none">{cells}</g>')
    for i, patch in enumerate(panel.patches):
        if cells := _cells(patch.sites, grid, scale, taken, hatched=panel.frozen):
            drawn.append(f'<g data-p="{i}" fill="{patch.colour}">{cells}</g>')
    return "".join(drawn)


def summary(panel: Panel) -> str:
    """Describe the pools of a panel and their parameters in a few words."""
    return f"{_pools(panel)}, {_count(panel)}"


def _pools(panel: Panel) -> str:
    what = {1: "tensor", 2: "pair"}.get(len(panel.roles), "set")
    members = span(bounds(len(patch.sites) for patch in panel.patches))
    if panel.alone:
        return f"private, a {what} for each module"
    if len(panel.patches) == 1:
        return f"one {what} for {members} modules"
    return f"{len(panel.patches):,} {what}s, {members} modules each"


def _count(panel: Panel) -> str:
    return f"{panel.parameters:,} {'frozen' if panel.frozen else 'trainable'} parameters"


def _lines(panel: Panel) -> tuple[str, str]:
    """Describe a panel above its picture, in two short lines."""
    return f"{', '.join(panel.roles)}: {_pools(panel)}", f"  {_count(panel)}"


def whole(picture: Picture) -> str:
    """Draw a whole plan as one SVG file, section by section, for light and dark pages."""
    sizes = [Scale.of(panel.grid).size(panel.grid) for panel in picture.panels]
    width, height = (max(side, default=0) for side in zip(*sizes, strict=True)) if sizes else (0, 0)
    margin, space = 24, 36
    boxes: list[tuple[list[tuple[str, str]], Panel | None]] = []
    for section in picture.sections:
        # Private tensors of a transform get a line of text instead of another grey grid.
        private_lines = [line for p in section.panels if p.private for line in _lines(p)]
        for panel in section.panels:
            if panel.private and not all(p.private for p in section.panels):
                continue
            head = [(section.row.name, "title"), *([(section.key, "")] if section.key else [])]
            lines_of = _lines(panel) if panel.private else [*_lines(panel), *private_lines]
            head += [(section.settings, ""), *((line, "muted") for line in lines_of)]
            boxes.append((head, panel))
    if trained := trained_in_full(picture.plan):
        lines = [(str(row), "") for row in trained]
        more = [(f"and {len(lines) - 6} more", "muted")] if len(lines) > 7 else []
        boxes.append(([("trained in full", "title"), *(lines[:6] if more else lines), *more], None))
    room = max(width, *(ceil(len(line) * CHARACTER) for head, _ in boxes for line, _ in head))
    columns = max(1, min(len(boxes), (_WIDTH - 2 * margin + space) // (room + space)))
    top = 17 * max(len(head) for head, _ in boxes) + 6
    drawn = []
    for i, (head, shown) in enumerate(boxes):
        x = margin + i % columns * (room + space)
        y = margin + i // columns * (top + height + space)
        words = "".join(
            f'<text class="{kind}" y="{17 * j + 12}">{_words(line)}</text>'
            for j, (line, kind) in enumerate(head)
        )
        body = "" if shown is None else panel_body(shown)
        drawn.append(
            f'<g transform="translate({x},{y})">{words}<g transform="translate(0,{top})">{body}</g></g>'
        )
    full = 2 * margin + columns * (room + space) - space
    tall = 2 * margin + ceil(len(boxes) / columns) * (top + height + space) - space
    label = (
        f"{picture.plan.spec} on {picture.plan.base.name}: layers across, modules down; "
        "modules of one colour share a tensor"
    )
    drawing = "\n".join(drawn)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{full}" height="{tall}" '
        f'viewBox="0 0 {full} {tall}" role="img" aria-label="{escape(label)}">\n'
        f"<style>{read_asset('picture.css')}</style>\n"
        f'<rect width="{full}" height="{tall}" rx="8" style="fill:var(--page)"/>\n{drawing}\n</svg>\n'
    )


def read_asset(name: str) -> str:
    """Return the text of a file of this package."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _axes(grid: Grid, scale: Scale) -> str:
    drawn = []
    step = next(step for step in (1, 2, 4, 8, 16, 32) if step * scale.across >= 26 or step == 32)
    for i in range(0, len(grid.layers), step):
        x = scale.left + i * scale.across + (scale.across - scale.gap) / 2
        drawn.append(
            f'<text class="muted middle" x="{x:g}" y="{_HEAD - 7}">{grid.layers[i]}</text>'
        )
    if scale.left > 5 * CHARACTER:
        drawn.append(f'<text class="muted end" x="{scale.left - 8}" y="{_HEAD - 7}">layer</text>')
    small = " small" if scale.down < 13 else ""
    for i, top in enumerate(scale.tops[:-1]):
        group = f"{grid.groups[i]}." if grid.groups[i] else ""
        drawn.append(
            f'<text class="end{small}" x="{scale.left - 8}" y="{top + (scale.down - scale.gap) / 2 + 4:g}">'
            f'<tspan class="muted">{_words(group)}</tspan>{_words(grid.names[i])}</text>'
        )
    return "".join(drawn)


def _cells(
    sites: tuple[int, ...], grid: Grid, scale: Scale, taken: set[tuple[int, int]], *, hatched: bool
) -> str:
    """Draw the cells of a pool. Neighbours touch, and experts folded into one row are drawn once."""
    here: dict[tuple[int, int], list[int]] = {}
    for i in sites:
        if grid.places[i] not in taken:
            here.setdefault(grid.places[i], []).append(i)
    taken.update(here)
    corner = ' rx="3"' if min(scale.across, scale.down) >= 13 and len(here) == 1 else ""
    drawn, lines = [], []
    for (row, column), inside in here.items():
        x, y = scale.left + column * scale.across, scale.tops[row]
        width = scale.across - scale.gap * ((row, column + 1) not in here)
        height = (
            scale.down - scale.gap if (row + 1, column) not in here else scale.tops[row + 1] - y
        )
        drawn.append(
            f'<rect data-i="{" ".join(map(str, inside))}" x="{x}" y="{y}" width="{width}" '
            f'height="{height}"{corner}/>'
        )
        lines += _diagonals(x, y, width, height) if hatched else []
    hatch = f'<path class="hatch" d="{"".join(lines)}"/>' if lines else ""
    return "".join(drawn) + hatch


def _diagonals(x: int, y: int, width: int, height: int) -> list[str]:
    """Hatch a cell with lines at multiples of `_HATCH` of ``x + y``, so that neighbours' lines meet."""
    first = -(-(x + y + 1) // _HATCH) * _HATCH
    return [
        f"M{max(x, s - y - height)} {min(s - x, y + height)}L{min(s - y, x + width)} {max(y, s - x - width)}"
        for s in range(first, x + y + width + height, _HATCH)
    ]


def _words(text: str) -> str:
    """Escape text for SVG, preserving double spaces."""
    return escape(text).replace("  ", "\u00a0 ")
