"""How long work is watched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

_Item = TypeVar("_Item")


class Watch(Protocol):
    """Goes over things one by one and shows how far it is, under a description."""

    def __call__(self, items: Sequence[_Item], description: str) -> Iterable[_Item]:
        """Return the items in their order."""


def no_progress(items: Sequence[_Item], description: str) -> Iterable[_Item]:
    """Return the items, and show nothing."""
    return items
