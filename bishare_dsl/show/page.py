"""A plan as one HTML page: no network, nothing to install, and every name of a spec as text."""

from __future__ import annotations

import json
from html import escape
from math import ceil
from pathlib import Path
from typing import Any

from bishare_dsl.plan import Plan
from bishare_dsl.show.picture import Grid, Panel, Picture, Section, picture
from bishare_dsl.show.rows import BYTES, mib, trained_in_full
from bishare_dsl.show.shell import Tab, figure, item, shell
from bishare_dsl.show.svg import Scale, panel_body, settings, summary
from bishare_dsl.spec import Spec

_FEW = 10


def page(plan: Plan, spec: Spec | None = None) -> str:
    """Draw the whole page. With the spec it says in the spec's words who shares."""
    drawn = picture(plan, spec)
    tabs = [
        Tab(section.row.name, f"{section.row.trainable:,}", _section(section, i, drawn.grid))
        for i, section in enumerate(drawn.sections)
    ]
    foot = (
        "Modules of one colour use one tensor. Where tensors are many, colours tell neighbours apart: "
        "point at a module to see who shares with it, click to keep that."
    )
    script = Path(__file__).with_name("page.js")
    of, data = f"on {plan.base.name}", _data(drawn)
    largest = max(range(len(tabs)), key=lambda i: _largest_pool(drawn.sections[i]), default=0)
    return shell(plan.spec, of, _facts(drawn), ("Shares", tabs), foot, data, script, largest)


def _largest_pool(section: Section) -> int:
    """Count the modules of the pool of a share that has most."""
    return max((len(p.sites) for panel in section.panels for p in panel.patches), default=0)


def frame(plan: Plan, spec: Spec | None = None) -> str:
    """Put the page inside a frame, for a notebook: neither's style nor script meets the other's."""
    drawn = picture(plan, spec)
    width, height = Scale.of(drawn.grid).size(drawn.grid)
    roles = max((len(section.panels) for section in drawn.sections), default=1)
    # A picture may be drawn 1.75 times as large.
    stacked = 1 if roles * (1.75 * width + 60) <= 1000 else roles
    tall = min(300 + stacked * (ceil(1.75 * height) + 130), 900)
    return (
        f'<iframe srcdoc="{escape(page(plan, spec))}" width="100%" height="{tall}" '
        f'style="border:0" title="{escape(f"{plan.spec} on {plan.base.name}")}"></iframe>'
    )


def _facts(drawn: Picture) -> list[str]:
    plan = drawn.plan
    adapted = sum(1 for terms in plan.terms_of.values() if terms)
    params = ", ".join(f"{name} = {value}" for name, value in plan.params.items())
    facts = [
        f"<b>{plan.trainable:,}</b> trainable parameters",
        f"{mib(BYTES * plan.stored)} MiB",
        f"<b>{adapted:,}</b> modules in {len(drawn.grid.layers):,} layers",
        *([escape(params)] if params else []),
    ]
    trained = ", ".join(map(str, trained_in_full(plan)))
    return [" · ".join(facts), *([f"trained in full: {escape(trained)}"] if trained else [])]


def _section(section: Section, i: int, grid: Grid) -> str:
    panels = "".join(_figure(panel, f"{i} {j}", grid) for j, panel in enumerate(section.panels))
    roles = dict.fromkeys(role for own in section.own.values() for role, _ in own)
    own = f"<br><i>of its own each module has {escape(', '.join(roles))}</i>" if roles else ""
    return (
        f'<p class="statement"><b>share</b> {escape(section.row.name)}  {escape(section.key)} '
        f'<i>{escape(settings(section))}</i>{own}</p><div class="panels wide">{panels}</div>'
    )


def _figure(panel: Panel, place: str, grid: Grid) -> str:
    size = sum(tensor.size for patch in panel.patches for tensor in patch.tensors)
    # Of many pools the axes and the pointer tell which is which.
    listed = [] if panel.alone or len(panel.patches) > _FEW else panel.patches
    legend = [item(patch.colour, patch.label, f' data-p="{i}"') for i, patch in enumerate(listed)]
    if panel.uncovered:
        legend.append(item("var(--none)", "not in this share"))
    said, drawn = f"{summary(panel)}, {size:,} parameters", panel_body(panel, grid)
    mark, roles = f'data-panel="{place}"', ", ".join(panel.roles)
    return figure(mark, roles, said, Scale.of(grid).size(grid), drawn, "".join(legend))


def _data(drawn: Picture) -> dict[str, Any]:
    """Collect what the page's script tells of pools and modules."""
    grid = drawn.grid
    return {
        "rows": grid.rows,
        "sites": [
            [row, site.layer, site.path, site.d_in, site.d_out]
            for site, (row, _) in zip(grid.sites, grid.places, strict=True)
        ],
        "shares": [
            {
                "panels": [
                    [
                        [[t.name, *t.shape, t.init, t.trainable] for t in patch.tensors]
                        for patch in panel.patches
                    ]
                    for panel in section.panels
                ],
                "own": _own(section, len(grid.sites)),
            }
            for section in drawn.sections
        ],
    }


def _own(section: Section, sites: int) -> dict[str, Any]:
    """Collect what single modules have, each distinct set of shapes once."""
    kinds: dict[str, int] = {}
    found = [-1] * sites
    for site, own in section.own.items():
        kind = json.dumps([[role, *tensor.shape] for role, tensor in own])
        found[site] = kinds.setdefault(kind, len(kinds))
    return {"kinds": [json.loads(kind) for kind in kinds], "sites": found}
