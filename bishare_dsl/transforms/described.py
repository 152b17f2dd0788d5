"""Say of transforms what messages need: their names, options and tensors, and the value of `auto`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from bishare_dsl.transforms.gate import Gate
from bishare_dsl.transforms.protocol import guard
from bishare_dsl.transforms.registry import COMPOSED, PLAIN
from bishare_dsl.transforms.shipped.composed import PLACES
from bishare_dsl.transforms.transform import Transform, Width

_ZERO = (("zeros", 1.0), ("constant", 0.0))


def why_refused(option: str, kind: str, message: str) -> str:
    """Turn Pydantic's message into the end of a sentence."""
    if kind.startswith("int"):
        return f"`{option}` is a whole number"
    message = message.removeprefix("Value error, ").replace("Input should be", f"`{option}` is")
    return message if message.startswith("`") else message[:1].lower() + message[1:]


def largest_fit(transform: Transform, option: str, sites: Collection[tuple[int, Width]]) -> int:
    """Find the best value of an option for these sites, up to its default.

    Among the values that limit the rank least, prefer those that fit all widths, and then the largest.
    """
    most = transform.largest(option)
    sides = {side for _, width in sites for side in width}

    def cost(size: int) -> tuple[int, bool]:
        tried = transform.with_option(option, size)
        lacking = sum(tried.rows(rank, width) - tried.reach(rank, width) for rank, width in sites)
        return lacking, not tried.fits(option, sides)

    sizes = range(most, 0, -1)  # Of equals, the first and largest is taken.
    with guard(transform, "reach"):
        return next((s for s in sizes if cost(s) == (0, False)), 0) or min(sizes, key=cost)


def via(transform: str, options: Mapping[str, Any]) -> str:
    """Write a transform as a spec does, without options that are false; ``-`` for none."""
    if transform == PLAIN:
        return "-"
    if transform == COMPOSED:
        return _composition(options)
    given = {name: v for name, v in options.items() if v is not None and v is not False}
    written = ", ".join(f"{name} = {'true' if v is True else v}" for name, v in given.items())
    return f"{transform}({written})" if written else transform


def _composition(options: Mapping[str, Any]) -> str:
    """Write a composition as a spec does: its chains by place."""
    places = []
    for place in PLACES:
        steps = []
        for step in options.get(place, ()):
            text = via(step["transform"], step["options"])
            if "gate" in step:
                text += f" {Gate(**step['gate']).written()}"
            if "name" in step:
                text += f" as {step['name']}"
            steps.append(text)
        if steps:
            places.append(f"{place} {' then '.join(steps)}")
    return ", ".join(places)


def transform_text(transform: str, options: Mapping[str, Any]) -> str:
    """Return the name of a term's transform for a message, or the text of a composition."""
    return via(transform, options) if transform == COMPOSED else transform


def transforms_of(transform: str, options: Mapping[str, Any]) -> set[str]:
    """Return the names of a term's transform, or of all steps of a composition."""
    if transform != COMPOSED:
        return {transform}
    return {step["transform"] for steps in options.values() for step in steps}


def zero_parts(transform: Transform, starts: Mapping[str, tuple[str, float]]) -> frozenset[str]:
    """Return the parts of a term's product that start at zero, gains included."""
    zero = frozenset(role for role, start in starts.items() if start in _ZERO)
    with guard(transform, "zeros"):
        return transform.zeros(zero & {*transform.roles}) | (zero - {*transform.roles})
