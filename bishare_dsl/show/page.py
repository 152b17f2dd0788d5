"""Draw a plan as one HTML page that needs no network. All names of a spec are escaped."""

from __future__ import annotations

import json
from html import escape
from math import ceil
from string import Template
from typing import Any

from bishare_dsl.plan import Plan
from bishare_dsl.show.colours import OWN
from bishare_dsl.show.picture import Panel, Picture, Section, picture
from bishare_dsl.show.rows import BYTES, held, mib, trained_in_full
from bishare_dsl.show.svg import Scale, panel_body, read_asset, summary
from bishare_dsl.spec import Spec

_FEW = 10


def page(plan: Plan, spec: Spec | None = None) -> str:
    """Draw the whole page. With the spec, the page prints its statements."""
    drawn = picture(plan, spec)
    sections = drawn.sections
    chosen = max(range(len(sections)), key=lambda i: _largest_pool(sections[i]), default=0)
    data = json.dumps(_data(drawn), separators=(",", ":"))
    return Template(read_asset("page.html")).substitute(
        title=escape(f"{plan.spec} on {plan.base.name}"),
        name=escape(plan.spec),
        of=escape(f"on {plan.base.name}"),
        pictures=read_asset("picture.css"),
        facts="\n".join(f'<p class="facts">{line}</p>' for line in _facts(drawn)),
        tabs="".join(
            f'<button role="tab" aria-selected="{str(i == chosen).lower()}" tabindex="{-(i != chosen)}">'
            f"{escape(section.row.name)}<small>{section.row.trainable:,}</small></button>"
            for i, section in enumerate(sections)
        ),
        sections="\n".join(
            f'<section role="tabpanel" aria-label="{escape(section.row.name)}"'
            f"{' hidden' if i != chosen else ''}>{_section(section, i)}</section>"
            for i, section in enumerate(sections)
        ),
        data=data.replace(
            "<", "\\u003c"
        ),  # Inside a script element, only `<` could end the element.
    )


def _largest_pool(section: Section) -> int:
    """Count the modules of the largest pool of a share."""
    return max((len(p.sites) for panel in section.panels for p in panel.patches), default=0)


def frame(plan: Plan, spec: Spec | None = None) -> str:
    """Put the page into a frame for a notebook, which isolates the styles and scripts of both."""
    drawn = picture(plan, spec)
    sizes = [Scale.of(panel.grid).size(panel.grid) for panel in drawn.panels]
    width, height = (max(side, default=0) for side in zip(*sizes, strict=True)) if sizes else (0, 0)
    panels = max((len(section.panels) for section in drawn.sections), default=1)
    # The page may enlarge a picture up to 1.75 times.
    stacked = 1 if panels * (1.75 * width + 60) <= 1000 else panels
    tall = min(340 + stacked * (ceil(1.75 * height) + 130), 900)
    return (
        f'<iframe srcdoc="{escape(page(plan, spec))}" width="100%" height="{tall}" '
        f'style="border:0" title="{escape(f"{plan.spec} on {plan.base.name}")}"></iframe>'
    )


def _facts(drawn: Picture) -> list[str]:
    plan = drawn.plan
    adapted = sum(1 for terms in plan.terms_of.values() if terms)
    layers = len({site.layer for site in plan.sites if site.layer is not None})
    params = ", ".join(f"{name} = {value}" for name, value in plan.params.items())
    facts = [
        f"<b>{plan.trainable:,}</b> trainable parameters",
        f"{mib(BYTES * plan.stored)} MiB",
        f"<b>{adapted:,}</b> modules in {layers:,} layers",
        *([escape(params)] if params else []),
    ]
    trained = ", ".join(map(str, trained_in_full(plan)))
    full = [f"trained in full: {escape(trained)}"] if trained else []
    return [" · ".join(facts), *([_split(plan)] if plan.terms else []), *full]


def _split(plan: Plan) -> str:
    """Draw a bar of the shared, private and frozen parameters."""
    counts = held(plan)
    parts = [
        ("shared", "var(--high)", f"{counts.shared:,} shared by several modules"),
        ("private", OWN, f"{counts.private:,} private to one module"),
        ("frozen", "var(--none)", f"{counts.frozen:,} frozen, not trained"),
    ]
    sizes = zip(counts, parts, strict=True)
    bars, items = [], []
    for size, (name, colour, text) in sizes:
        if size:
            part = f"{size / sum(counts):.1%}"
            bars.append(f'<i class="{name}" style="flex-grow:{size};background:{colour}"></i>')
            key = f'<i class="key {name}" style="background:{colour}"></i>'
            items.append(f'<span class="item">{key}{text} ({part})</span>')
    return f'<span class="split">{"".join(bars)}</span>{"".join(items)}'


def _section(section: Section, i: int) -> str:
    panels = "".join(_figure(panel, f"{i} {j}") for j, panel in enumerate(section.panels))
    return (
        f'<p class="statement"><b>share</b> {escape(section.row.name)}  {escape(section.key)} '
        f'<i>{escape(section.settings)}</i></p><div class="panels wide">{panels}</div>'
    )


def _figure(panel: Panel, place: str) -> str:
    """Draw a panel below its title, and above the items of its legend."""
    # With many pools, the axes and the tooltip identify them instead of a legend.
    listed = [] if panel.alone or len(panel.patches) > _FEW else panel.patches
    items = [(f' data-p="{i}"', p.colour, p.label) for i, p in enumerate(listed)]
    if panel.uncovered:
        items.append(("", "var(--none)", "not in this share"))
    legend = "".join(
        f'<li{mark}><i style="background:{colour}"></i>{escape(text)}</li>'
        for mark, colour, text in items
    )
    roles, caption = escape(", ".join(panel.roles)), escape(summary(panel))
    width, height = Scale.of(panel.grid).size(panel.grid)
    return (
        f'<figure data-panel="{place}"><figcaption><b>{roles}</b> <span>{caption}</span></figcaption>'
        f'<div class="scroll"><svg style="--drawn:{width}px" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{roles}: {caption}">{panel_body(panel)}</svg></div>'
        f'<p class="hint">scroll to the right for more</p><ul>{legend}</ul></figure>'
    )


def _data(drawn: Picture) -> dict[str, Any]:
    """Collect the data for the page's tooltips."""
    sites = drawn.plan.sites
    return {
        "sites": [[site.layer, site.path, site.d_in, site.d_out] for site in sites],
        "shares": [
            {
                "panels": [
                    {
                        "rows": panel.grid.rows,
                        "at": [row for row, _ in panel.grid.places],
                        "pools": [
                            [
                                [role, *t.shape, t.init, t.trainable]
                                for role, t in zip(panel.roles, patch.tensors, strict=True)
                            ]
                            for patch in panel.patches
                        ],
                    }
                    for panel in section.panels
                ],
                "own": _own(section, len(sites)),
            }
            for section in drawn.sections
        ],
    }


def _own(section: Section, sites: int) -> dict[str, Any]:
    """Collect the private tensors of each module, with each distinct set of shapes once."""
    own: dict[int, list[list[Any]]] = {}
    for panel in section.panels:
        for patch in panel.patches if panel.private else ():
            pairs = zip(panel.roles, patch.tensors, strict=True)
            own.setdefault(patch.sites[0], []).extend([r, *t.shape] for r, t in pairs)
    kinds: dict[str, int] = {}
    kind_of_site = [-1] * sites
    for site, shapes in own.items():
        kind_of_site[site] = kinds.setdefault(json.dumps(shapes), len(kinds))
    return {"kinds": [json.loads(kind) for kind in kinds], "sites": kind_of_site}
