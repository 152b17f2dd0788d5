"""How far long work is: a bar on standard error, where that is a terminal, which is cleared at the end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

_Item = TypeVar("_Item")


def track(items: Iterable[_Item], description: str, *, hidden: bool = False) -> Iterable[_Item]:
    """Go over items with a bar, unless it is ``hidden`` or there is no terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    hidden = hidden or not console.is_terminal
    return track(items, description, console=console, transient=True, disable=hidden)
