"""A part of a long product for `make test`."""

import pytest


def quick(values, part):
    """Return values to parametrise with: those of ``part`` in `make test`, the others in `make test-long` alone."""
    values = [*values]
    assert {*part} <= {*values}
    return [v if v in part else pytest.param(*_row(v), marks=pytest.mark.long) for v in values]


def _row(value):
    return value if isinstance(value, tuple) else (value,)


def superfluous(rows):
    """Return the tests of a product that can be left out, while each value of each parameter stays in one."""
    left, unseen = [*rows], {value for row in rows for value in _values(row)}
    while unseen:
        best = max(left, key=lambda row: len(unseen & _values(row)))
        left.remove(best)
        unseen -= _values(best)
    return left


def _values(row):
    return {(name, repr(value)) for name, value in row.callspec.params.items()}
