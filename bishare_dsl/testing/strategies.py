"""Hypothesis strategies for transforms, and pools of sites that they accept.

Needs the package `hypothesis`.

    @given(transforms_of(MyTransform), pools(), st.integers(1, 4))
    def test_my_transform(transform, widths, rank):
        rank, widths = accepted_pool(transform, rank, widths)
        check_transform(transform, rank, widths)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from bishare_dsl.testing.checks import pool_shapes
from bishare_dsl.transforms import Transform, Width

_RANGE = 5
"""How far numbers of an option go above the smallest."""


def transforms_of(kind: type[Transform]) -> st.SearchStrategy[Transform]:
    """Generate transforms of a class, with small values of every option.

    The values come from the types and limits of the Pydantic fields; combinations that the class refuses
    are left out. Options of other types than `int`, `bool` and `Literal` keep their defaults.
    """
    options = {}
    for name, field in kind.model_fields.items():
        values = _values_of(field.annotation, field)
        if values is not None:
            options[field.alias or name] = values

    def build(values: Mapping[str, Any]) -> Transform | None:
        try:
            return kind.model_validate(values)
        except ValidationError:
            return None

    built = st.fixed_dictionaries(options).map(build)
    return built.filter(lambda transform: transform is not None)  # type: ignore[return-value]


def _values_of(annotation: Any, field: FieldInfo) -> st.SearchStrategy[Any] | None:
    if get_origin(annotation) is Literal:
        return st.sampled_from(get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        inner = [_values_of(part, field) for part in get_args(annotation) if part is not NoneType]
        known = [values for values in inner if values is not None]
        return st.none() | st.one_of(known) if known else None
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        low, high = _limits(field)
        return st.integers(low, high)
    if hasattr(annotation, "__metadata__"):  # `PositiveInt` inside of a union.
        return _values_of(annotation.__origin__, FieldInfo.from_annotation(annotation))
    return None


def _limits(field: FieldInfo) -> tuple[int, int]:
    low = 0
    for limit in field.metadata:
        low = max(low, getattr(limit, "ge", low), getattr(limit, "gt", low - 1) + 1)
    high = low + _RANGE
    for limit in field.metadata:
        high = min(high, getattr(limit, "le", high), getattr(limit, "lt", high + 1) - 1)
    return low, high


def pools() -> st.SearchStrategy[list[Width]]:
    """Generate the widths of one to four sites that share a factor."""
    sides = st.integers(1, 24)
    return st.lists(st.builds(Width, sides, sides), min_size=1, max_size=4)


def accepted_pool(
    transform: Transform, rank: int, widths: Sequence[Width]
) -> tuple[int, list[Width]]:
    """Return a rank and widths, made from those in the arguments, that the transform accepts.

    A transform may require equal widths, or multiples of an option. So try all sites and the first, as
    they are and multiplied by each option, and a rank that an option sets.

    Raises:
        AssertionError: the transform accepts none of them.
    """
    options = transform.options().values()
    numbers = sorted({value for value in options if type(value) is int and value > 0})
    ranks = [rank, *(rank * number for number in numbers), *numbers]
    for sites, wider, tried in product((widths, widths[:1]), (1, *numbers), ranks):
        multiples = [Width(width.d_in * wider, width.d_out * wider) for width in sites]
        if pool_shapes(transform, tried, multiples) is not None:
            return tried, multiples
    raise AssertionError(
        f"{transform!r} accepts neither these widths nor multiples of them: {widths}"
    )
