"""A part of a long product for `make test`."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def quick(values: Iterable[Any], part: Collection[Any]) -> list[Any]:
    """Return values to parametrise with: those of ``part`` in `make test`, the others in `make test-long` alone."""
    values = [*values]
    assert set(part) <= set(values)
    return [v if v in part else pytest.param(*_row(v), marks=pytest.mark.long) for v in values]


def _row(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
