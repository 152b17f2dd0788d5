"""Write a script's tables into a page, below its mark."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def write_below(page: Path, script: str, lines: Iterable[str]) -> str:
    """Replace the text below the mark of a script by lines of Markdown, and return them."""
    head, mark, _ = page.read_text(encoding="utf-8").partition(f"<!-- {script} --tables -->\n")
    assert mark
    text = "\n".join(lines).rstrip() + "\n"
    page.write_text(f"{head}{mark}\n{text}", encoding="utf-8")
    return text
