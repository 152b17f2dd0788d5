"""What all pages have in common: one HTML file without network, its tabs, themes and the box that tells."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from bishare_dsl.show.svg import DARK, LIGHT, STYLE


def shell(title: str, body: str, data: Any, script: str, style: str = "") -> str:
    """Make a page.

    Args:
        title: of the window.
        body: HTML: a `header`, a `tab_list`, a ``section`` for each tab, a ``footer``.
        data: what the script reads as ``data``.
        script: run behind that of the shell, whose ``tip``, ``line``, ``place`` and ``whenChosen`` it uses.
        style: CSS behind that of the shell.
    """
    template = Template(Path(__file__).with_name("shell.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(title),
        light=LIGHT,
        dark=DARK,
        style=STYLE + style,
        body=body,
        # Inside a script element only `<` could end it, whatever the names are.
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
        script=script,
    )


def header(name: str, of: str) -> str:
    """Write the head of a page, with the switch between themes."""
    return (
        f"<header><h1>{escape(name)} <span>{escape(of)}</span></h1>"
        '<button id="theme" data-is="auto">theme: auto</button></header>'
    )


def tab_list(label: str, tabs: Sequence[tuple[str, str]]) -> str:
    """Write the tabs of a page, each a name with a few words behind it; the first is chosen."""
    buttons = "".join(
        f'<button role="tab" aria-selected="{str(not i).lower()}" tabindex="{-bool(i)}">'
        f"{escape(name)}<small>{escape(more)}</small></button>"
        for i, (name, more) in enumerate(tabs)
    )
    return f'<nav role="tablist" aria-label="{escape(label)}">{buttons}</nav>'
