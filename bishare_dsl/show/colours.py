"""Colours of pools: distinct where pools are few, and otherwise unlike those of the neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, pi, sin

_FEW = (
    *("#4269d0", "#efb118", "#3ca951", "#ff725c", "#a463f2"),
    *("#38b2c5", "#ff8ab7", "#9c6b4e", "#8fa63c", "#97bbf5"),
)
# Multiples of these two, and their sums, come near no whole number soon: of the places in a grid it makes
# hues that lie far apart wherever the places lie near each other (the additive sequence R2 of M. Roberts).
_ACROSS, _DOWN = 0.7548776662, 0.5698402910
_OWN = "#a3adb8"
_LIGHT = (0.70, 0.61, 0.79)


def colours(places: Sequence[tuple[int, int]], *, alone: bool = False) -> list[str]:
    """Choose a colour for each pool, by the row and the column where it is first seen.

    They are for a light and for a dark page. Pools of one module (``alone``) are grey: nothing is shared.
    """
    if alone:
        return [_OWN] * len(places)
    if len(places) <= len(_FEW):
        return list(_FEW[: len(places)])
    return [
        _hex(
            _LIGHT[(column + 2 * row) % len(_LIGHT)],
            0.125,
            0.7 + column * _ACROSS + row * _DOWN,
        )
        for row, column in places
    ]


def _hex(lightness: float, chroma: float, turn: float) -> str:
    """Return a colour of Oklch (B. Ottosson) as sRGB, with less chroma where sRGB has not so much."""
    while True:
        rgb = _linear_rgb(lightness, chroma * cos(2 * pi * turn), chroma * sin(2 * pi * turn))
        if all(-1e-4 <= part <= 1 + 1e-4 for part in rgb):
            return "#" + "".join(f"{round(255 * _gamma(part)):02x}" for part in rgb)
        chroma *= 0.95


def _linear_rgb(lightness: float, a: float, b: float) -> tuple[float, float, float]:
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )


def _gamma(part: float) -> float:
    part = min(max(part, 0), 1)
    return 12.92 * part if part <= 0.0031308 else 1.055 * part ** (1 / 2.4) - 0.055
