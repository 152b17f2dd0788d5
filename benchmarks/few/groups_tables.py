"""Tables of notes/2026-12-03-groups.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of the tables."""
    yield f"{len(rows)} cells"
