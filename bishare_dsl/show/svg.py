"""Draw the picture of a plan as one SVG file, which needs no network. All names of a spec are escaped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil
from pathlib import Path
from textwrap import wrap

from bishare_dsl.plan import Plan
from bishare_dsl.show.colours import PALETTE
from bishare_dsl.show.picture import Grid, Panel, Patch, picture
from bishare_dsl.show.rows import bounds, span, trained_in_full
from bishare_dsl.show.shared import conclusion
from bishare_dsl.spec import Spec

CHARACTER = 6.7
"""The width of a character of 11 pixels in most monospaced fonts."""
_GAP_OF_GROUPS = 6
_HEAD = 20
_LINE = 17
_MARGIN = 16
_LEAST_WIDTH = 320
"""A picture of few layers is as wide as a phone, which shows it without scaling."""
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
        columns = len(grid.layers)
        rows = len(grid.names)
        steps = (12, 28), (34, 16), (48, 14), (84, 11)
        across = next((s for most, s in steps if columns <= most), 8)
        down = next((s for most, s in ((8, 24), (14, 20), (32, 15), (80, 13)) if rows <= most), 11)
        tops = []
        top = _HEAD
        for i in range(rows):
            top += _GAP_OF_GROUPS if i and grid.groups[i] != grid.groups[i - 1] else 0
            tops.append(top)
            top += down
        longest = max(map(len, grid.rows), default=0)
        gap = 1 if min(across, down) < 13 else 2
        return cls(across, down, gap, ceil(longest * CHARACTER) + 10, (*tops, top))

    def size(self, grid: Grid) -> tuple[int, int]:
        return self.left + len(grid.layers) * self.across + 4, self.tops[-1]


def _panel_body(panel: Panel) -> str:
    """Draw the cells of a panel, hatched if frozen, with the names of rows and columns."""
    grid = panel.grid
    scale = Scale.of(grid)
    drawn = [_axes(grid, scale)]
    taken: set[tuple[int, int]] = set()
    if panel.uncovered:
        cells = _cells(panel.uncovered, grid, scale, taken, hatched=False)
        drawn.append(f'<g class="none">{cells}</g>')
    look = "private" if panel.alone else "pool"
    for patch in panel.patches:
        cells = _cells(patch.sites, grid, scale, taken, hatched=panel.frozen)
        if cells:
            title = f"<title>{escape(_tooltip(panel, patch))}</title>"
            drawn.append(f'<g class="{look}" fill="{patch.colour}">{title}{cells}</g>')
    return "".join(drawn)


def _tooltip(panel: Panel, patch: Patch) -> str:
    """Describe a pool: its key, the shape of its tensors, and the number of its modules."""
    shapes = []
    for role, tensor in zip(panel.roles, patch.tensors, strict=True):
        rows, columns = tensor.shape
        shapes.append(f"{role} {rows:,} x {columns:,}")
    count = len(patch.sites)
    modules = "1 module" if count == 1 else f"{count:,} modules"
    return f"{patch.label}: {', '.join(shapes)}, {modules}"


def _size(panel: Panel) -> tuple[int, int]:
    return Scale.of(panel.grid).size(panel.grid)


def _summary(panel: Panel) -> str:
    """Describe the pools of a panel and their parameters in a few words."""
    what = {1: "tensor", 2: "pair"}.get(len(panel.roles), "set")
    members = span(bounds(len(patch.sites) for patch in panel.patches))
    pools = f"{len(panel.patches):,} {what}s, {members} modules each"
    if panel.alone:
        pools = f"private, a {what} for each module"
    elif len(panel.patches) == 1:
        pools = f"one {what} for {members} modules"
    frozen = " frozen" if panel.frozen else ""
    count = f"{panel.parameters:,}{frozen} parameters"
    return f"{', '.join(panel.roles)}: {pools}, {count}"


class _Sheet:
    """A picture that grows downwards: lines of text, wrapped to its width, and drawings."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.y = _MARGIN
        self.drawn: list[str] = []

    def write(self, text: str, kind: str = "", left: int = 0) -> None:
        for line in wrap(text, int((self.width - left) / CHARACTER), break_on_hyphens=False):
            self.y += _LINE
            x = _MARGIN + left
            y = self.y - 5
            self.drawn.append(f'<text class="{kind}" x="{x}" y="{y}">{escape(line)}</text>')

    def draw(self, body: str, height: int) -> None:
        self.drawn.append(f'<g transform="translate({_MARGIN},{self.y})">{body}</g>')
        self.y += height


def draw(plan: Plan, spec: Spec | None = None) -> str:
    """Draw a plan as SVG, share by share, for light and dark pages. With the spec, print its statements.

    Private tensors of a share that shares others get a line of text and no grid.
    """
    sections = picture(plan, spec)
    every = [panel for section in sections for panel in section.panels]
    sheet = _Sheet(max([_LEAST_WIDTH, *(_size(panel)[0] for panel in every)]))
    name = f"{plan.spec} on {plan.base.name}"
    sheet.write(name, "title")
    sheet.write(f"All counts are of this model of {plan.base.layers:,} layers.", "muted")
    shares = [section.row for section in sections]
    sheet.write(conclusion(plan, spec, shares)[0])  # The statements below say the rest.
    panels = []
    for section in sections:
        sheet.y += _LINE
        sheet.write(section.row.name, "title")
        sheet.write(section.statement)
        shared = [panel for panel in section.panels if not panel.alone]
        for panel in section.panels:
            sheet.write(_summary(panel), "muted")
            if panel in (shared or section.panels[:1]):
                sheet.draw(_panel_body(panel), _size(panel)[1])
                panels.append(panel)
    trained = trained_in_full(plan)
    if trained:
        sheet.y += _LINE
        sheet.write("trained in full", "title")
        for row in trained:
            sheet.write(f"{row.path}  {row.parameters:,}")
    sheet.y += _LINE
    for look, text in _legend(panels):
        sheet.draw(look, 0)
        sheet.write(text, "muted", left=20)
    width = sheet.width + 2 * _MARGIN
    height = sheet.y + _MARGIN
    label = escape(f"{name}: layers across, modules down; modules of one colour share a tensor")
    drawing = "\n".join(sheet.drawn)
    style = Path(__file__).with_name("picture.css").read_text(encoding="utf-8")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="bishare" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" aria-label="{label}">\n'
        f"<style>{style}</style>\n"
        f'<rect width="{width}" height="{height}" rx="8" class="page"/>\n{drawing}\n</svg>\n'
    )


def _legend(panels: Sequence[Panel]) -> Iterator[tuple[str, str]]:
    """Yield a drawing and a text for each look of a cell that occurs."""
    cell = '<rect y="3" width="12" height="12"/>'
    if any(not panel.alone for panel in panels):
        both = "".join(
            f'<rect x="{7 * i}" y="3" width="7" height="12" fill="{PALETTE[i]}"/>' for i in (0, 1)
        )
        repeated = any(len(p.patches) > len(PALETTE) and not p.alone for p in panels)
        text = "modules of one colour share a tensor"
        if repeated:
            text += f"; the {len(PALETTE)} colours repeat, and a cell's tooltip names its tensor"
        yield both, text
    if any(panel.alone for panel in panels):
        yield f'<g class="private">{cell}</g>', "a module with a tensor of its own"
    if any(panel.frozen for panel in panels):
        hatch = "".join(_diagonals(0, 3, 12, 12))
        yield f'<g class="none">{cell}</g><path class="hatch" d="{hatch}"/>', "frozen"
    if any(panel.uncovered for panel in panels):
        yield f'<g class="none">{cell}</g>', "not in this share"


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
            f'<tspan class="muted">{escape(group)}</tspan>{escape(grid.names[i])}</text>'
        )
    return "".join(drawn)


def _cells(
    sites: tuple[int, ...], grid: Grid, scale: Scale, taken: set[tuple[int, int]], *, hatched: bool
) -> str:
    """Draw the cells of a pool. Neighbours touch, and experts folded into one row are drawn once."""
    cells = {grid.places[i]: None for i in sites if grid.places[i] not in taken}
    taken.update(cells)
    corner = ' rx="3"' if min(scale.across, scale.down) >= 13 and len(cells) == 1 else ""
    drawn: list[str] = []
    lines: list[str] = []
    for row, column in cells:
        x = scale.left + column * scale.across
        y = scale.tops[row]
        beside = (row, column + 1) in cells
        width = scale.across if beside else scale.across - scale.gap
        below = (row + 1, column) in cells
        height = scale.tops[row + 1] - y if below else scale.down - scale.gap
        drawn.append(f'<rect x="{x}" y="{y}" width="{width}" height="{height}"{corner}/>')
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
