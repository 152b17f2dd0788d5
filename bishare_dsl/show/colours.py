"""Colours of pools: distinct where pools are few, and otherwise unlike those of the neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from colorsys import hls_to_rgb

_FEW = (
    *("#4269d0", "#efb118", "#3ca951", "#ff725c", "#a463f2"),
    *("#38b2c5", "#ff8ab7", "#9c6b4e", "#8fa63c", "#97bbf5"),
)
# Multiples of these two, and their sums, come near no whole number soon: of the places in a grid it makes
# hues that lie far apart wherever the places lie near each other (the additive sequence R2 of M. Roberts).
_ACROSS, _DOWN = 0.7548776662, 0.5698402910
OWN = "#a3adb8"
"""Of what one module has for itself."""
_LIGHT, _SATURATION = (0.62, 0.45, 0.74), 0.5


def colours(places: Sequence[tuple[int, int]], *, alone: bool = False) -> list[str]:
    """Choose a colour for each pool, by the row and the column where it is first seen.

    They are for a light and for a dark page. Pools of one module (``alone``) are grey: nothing is shared.
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
