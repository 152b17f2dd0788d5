"""Colours of pools: distinct if the pools are few, else unlike the colours of neighbours."""

from __future__ import annotations

from collections.abc import Sequence

PALETTE = (
    *("#4269d0", "#efb118", "#3ca951", "#ff725c", "#a463f2"),
    *("#38b2c5", "#ff8ab7", "#9c6b4e", "#8fa63c", "#97bbf5"),
)
"""Colours that can be distinguished, on light and on dark pages."""


def colours(places: Sequence[tuple[int, int]]) -> list[str]:
    """Choose a colour for each pool from the row and the column of its first module.

    With more pools than colours, pools repeat colours, but not those of neighbours in a row or a column.
    """
    if len(places) <= len(PALETTE):
        return list(PALETTE[: len(places)])
    return [PALETTE[(3 * column + 4 * row) % len(PALETTE)] for row, column in places]
