"""Say of transforms what messages need: their names, options and tensors, and the value of `auto`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, get_args

from pydantic_core import PydanticUndefined

from bishare_dsl.diagnostics import advise, nearest
from bishare_dsl.resources import shipped_specs
from bishare_dsl.spec.expression import ATTRIBUTES
from bishare_dsl.transforms.apply import GAIN_OUT, GAIN_RANK
from bishare_dsl.transforms.protocol import guard
from bishare_dsl.transforms.registry import BUILT_IN, PLAIN, transform_kind, transform_names
from bishare_dsl.transforms.transform import Transform, Width

_ZERO = (("zeros", 1.0), ("constant", 0.0))


def transform_called(name: str) -> str | None:
    """Suggest a transform for an unknown name, which may be a title or the name of a shipped spec."""
    names = {*transform_names()} - {PLAIN}
    titles = {transform_kind(own).title.replace(" ", "_"): own for own in names & BUILT_IN.keys()}
    if meant := next((own for title, own in titles.items() if nearest(name, [title], few=0)), None):
        return f"did you mean `{meant}`?"
    if (file := shipped_specs().get(name.lower())) and advise("transform", name) is None:
        parts = listed({*re.findall(r"\bvia (\w+)", file.read_text(encoding="utf-8"))})
        whole = f'it is a whole method, and a shipped spec: `use "{name.lower()}"` in place of the shares'
        return f"{whole}, whose transform is {parts}" if parts else whole
    return advise("transform", name, names, few=24)


def option_described(kind: type[Transform], option: str, value: Any) -> str | None:
    """Describe the values of a transform's option."""
    if value in ATTRIBUTES:
        return "an option has one value in a share: use another share for another value"
    fields = {field.alias or name: field for name, field in kind.model_fields.items()}
    field = fields.get(option)
    if field is None or not field.description:
        return None
    words = [word for word in get_args(field.annotation) if isinstance(word, str)]
    if isinstance(value, str) and (meant := nearest(value, words, few=0)):
        return meant
    default = "" if field.default in (None, PydanticUndefined) else f"; without it {field.default}"
    return f"`{option}` is: {field.description}{default}"


def option_of(option: str, name: str, has: Collection[str]) -> str | None:
    """Say which transforms have an option that this one lacks, or the nearest one that it ``has``."""
    others = [other for other in BUILT_IN if option in transform_kind(other).model_fields]
    if not others:
        return re.sub("(valid here: .*)", r"\1; or leave it out", nearest(option, has) or "")
    return f"`{option}` is an option of {', '.join(others)}; {name} has {listed(has) or 'none'}"


def why_refused(option: str, kind: str, message: str) -> str:
    """Turn Pydantic's message into the end of a sentence."""
    if kind.startswith("int"):
        return f"`{option}` is a whole number"
    message = message.removeprefix("Value error, ").replace("Input should be", f"`{option}` is")
    return message if message.startswith("`") else message[:1].lower() + message[1:]


def roles_of(name: str) -> set[str]:
    """Return the roles of a transform's tensors, or none of an unknown transform."""
    kind = transform_kind(name) if name in transform_names() else None
    return {*kind.pooled, *kind.owned} if kind else set()


def role_of(role: str) -> str | None:
    """Say which clause makes a tensor of this role."""
    if role in (GAIN_RANK, GAIN_OUT):
        return f"`{role}` is there with `gain {role.removeprefix('gain_')} init` and a number"
    kinds = [name for name in BUILT_IN if role in roles_of(name)]
    return f"`{role}` is a tensor of `via {' or '.join(kinds)}`" if 0 < len(kinds) < 4 else None


def listed(roles: Iterable[str]) -> str:
    """List names for a message."""
    return ", ".join(f"`{role}`" for role in sorted(roles))


def largest_fit(transform: Transform, option: str, sites: Collection[tuple[int, Width]]) -> int:
    """Find the best value of an option for these sites, up to its default.

    Among the values that limit the rank least, prefer those that divide all widths, and then the largest.
    """
    most = type(transform).model_fields[option].default
    sides = {side for _, width in sites for side in width}

    def cost(size: int) -> tuple[int, bool]:
        tried = transform.model_copy(update={option: size})
        lacking = sum(tried.rows(rank, width) - tried.reach(rank, width) for rank, width in sites)
        return lacking, any(side % size for side in sides)

    sizes = range(most, 0, -1)  # Of equals, the first and largest is taken.
    with guard(transform, "reach"):
        return next((s for s in sizes if cost(s) == (0, False)), 0) or min(sizes, key=cost)


def via(transform: str, options: Mapping[str, Any]) -> str:
    """Write a transform as a spec does, without options that are false; ``-`` for none."""
    if transform == PLAIN:
        return "-"
    given = {name: v for name, v in options.items() if v is not None and v is not False}
    written = ", ".join(f"{name} = {'true' if v is True else v}" for name, v in given.items())
    return f"{transform}({written})" if written else transform


def zero_parts(transform: Transform, starts: Mapping[str, tuple[str, float]]) -> frozenset[str]:
    """Return the parts of a term's product that start at zero, gains included."""
    zero = frozenset(role for role, start in starts.items() if start in _ZERO)
    with guard(transform, "zeros"):
        return transform.zeros(zero & {*transform.roles}) | (zero - {*transform.roles})
