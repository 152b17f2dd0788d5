"""What all pages and pictures have in common: files without network, of one form and one style."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

_HERE = Path(__file__).parent


class Tab(NamedTuple):
    """A part of a page: its name, a few words after that on its button, and its HTML."""

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
        name: what it is about, and ``of`` what, as text.
        of: as text.
        facts: HTML: lines under the name.
        tabs: what they are called together, and each; that number ``chosen`` is open.
        foot: HTML: what is said below.
        data: what the script reads as ``data``.
        script: run after that of the shell, whose ``tip``, ``line``, ``place`` and ``whenChosen`` it uses.
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
        # Inside a script element only `<` could end it, whatever the names are.
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
        script=script.read_text(encoding="utf-8"),
    )


def figure(
    mark: str, title: str, said: str, size: tuple[int, int], drawn: str, legend: str = ""
) -> str:
    """Write a picture on a page: under its title and what is said of it, over the items of a legend.

    ``mark`` is an attribute by which the page's script knows it; ``drawn`` is SVG.
    """
    width, height = size
    label = escape(f"{title}: {said}")
    return (
        f"<figure {mark}><figcaption><b>{escape(title)}</b> <span>{escape(said)}</span></figcaption>"
        f'<div class="scroll"><svg style="--drawn:{width}px" '
        f'viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{drawn}</svg></div>'
        f'<p class="hint">scroll to the right for more</p>'
        f"<ul>{legend}</ul></figure>"
    )


def item(colour: str, text: str, attributes: str = "") -> str:
    """Write an item of a legend: a colour, as CSS has it, and what it means."""
    return f'<li{attributes}><i style="background:{colour}"></i>{escape(text)}</li>'


def svg_file(width: int, height: int, label: str, drawn: str) -> str:
    """Make a picture that is a file of its own, for a light and a dark page."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">\n'
        f"<style>{_read('picture.css')}</style>\n"
        f'<rect width="{width}" height="{height}" rx="8" style="fill:var(--page)"/>\n{drawn}\n</svg>\n'
    )


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
