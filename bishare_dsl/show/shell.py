"""The frame of all pages and pictures: one style, in files that need no network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

_HERE = Path(__file__).parent


class Tab(NamedTuple):
    """A part of a page: its name and a few more words for its button, and its HTML."""

    name: str
    more: str
    body: str


def shell(
    name: str,
    of: str,
    facts: Sequence[str],
    tabs: tuple[str, Sequence[Tab]],
    foot: str,
    data: Any,
    script: Path,
    chosen: int = 0,
) -> str:
    """Make a page.

    Args:
        name: the title, as text.
        of: the rest of the title, as text.
        facts: lines of HTML under the title.
        tabs: a name for all tabs, and the tabs; number ``chosen`` is open.
        foot: HTML below the tabs.
        data: available to the script as ``data``.
        script: runs after the shell's script and uses its ``tip``, ``line``, ``place`` and ``whenChosen``.
    """
    label, parts = tabs
    return Template(_read("shell.html")).substitute(
        title=escape(f"{name} {of}"),
        name=escape(name),
        of=escape(of),
        pictures=_read("picture.css"),
        facts="\n".join(f'<p class="facts">{line}</p>' for line in facts),
        label=escape(label),
        tabs="".join(
            f'<button role="tab" aria-selected="{str(i == chosen).lower()}" tabindex="{-(i != chosen)}">'
            f"{escape(tab.name)}<small>{escape(tab.more)}</small></button>"
            for i, tab in enumerate(parts)
        ),
        sections="\n".join(
            f'<section role="tabpanel" aria-label="{escape(tab.name)}"{" hidden" if i != chosen else ""}>'
            f"{tab.body}</section>"
            for i, tab in enumerate(parts)
        ),
        foot=foot,
        # Inside a script element, only `<` could end the element.
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
        script=script.read_text(encoding="utf-8"),
    )


def figure(
    mark: str, title: str, caption: str, size: tuple[int, int], drawing: str, legend: str = ""
) -> str:
    """Write a picture on a page, below its title and caption and above the items of its legend.

    ``mark`` is an attribute that identifies it for the page's script, and ``drawing`` is SVG.
    """
    width, height = size
    label = escape(f"{title}: {caption}")
    return (
        f"<figure {mark}><figcaption><b>{escape(title)}</b> <span>{escape(caption)}</span></figcaption>"
        f'<div class="scroll"><svg style="--drawn:{width}px" '
        f'viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{drawing}</svg></div>'
        f'<p class="hint">scroll to the right for more</p>'
        f"<ul>{legend}</ul></figure>"
    )


def item(colour: str, text: str, attributes: str = "") -> str:
    """Write an item of a legend: a CSS colour and its meaning."""
    return f'<li{attributes}><i style="background:{colour}"></i>{escape(text)}</li>'


def svg_file(width: int, height: int, label: str, drawing: str) -> str:
    """Make a separate SVG file for light and dark pages."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">\n'
        f"<style>{_read('picture.css')}</style>\n"
        f'<rect width="{width}" height="{height}" rx="8" style="fill:var(--page)"/>\n{drawing}\n</svg>\n'
    )


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
