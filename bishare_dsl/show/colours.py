"""Colours of pools: distinct if the pools are few, else unlike the colours of neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from colorsys import hls_to_rgb

_FEW = (
    *("#4269d0", "#efb118", "#3ca951", "#ff725c", "#a463f2"),
    *("#38b2c5", "#ff8ab7", "#9c6b4e", "#8fa63c", "#97bbf5"),
)
# The additive sequence R2 of M. Roberts: neighbouring cells of a grid get hues that are far apart.
_ACROSS, _DOWN = 0.7548776662, 0.5698402910
OWN = "#a3adb8"
"""The colour of private tensors."""
_LIGHT, _SATURATION = (0.62, 0.45, 0.74), 0.5


def colours(places: Sequence[tuple[int, int]], *, alone: bool = False) -> list[str]:
    """Choose a colour for each pool from the row and the column of its first module.

    The colours suit light and dark pages. Pools of one module (``alone``) are grey.
    """
    if alone:
        return [OWN] * len(places)
    if len(places) <= len(_FEW):
        return list(_FEW[: len(places)])
    return [
        _hex(_LIGHT[(column + 2 * row) % len(_LIGHT)], 0.6 + column * _ACROSS + row * _DOWN)
        for row, column in places
    ]


def _hex(lightness: float, turn: float) -> str:
    rgb = hls_to_rgb(turn % 1, lightness, _SATURATION)
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)
