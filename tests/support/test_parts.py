"""What `make test` takes of a product."""

from itertools import product
from types import SimpleNamespace

import pytest

from tests.support.parts import quick, superfluous


def test_each_value_stays_in_a_row() -> None:
    axes = {"family": ["llama", "gpt2", "opt"], "dtype": [1, 2], "tied": [False, True]}
    rows = [
        SimpleNamespace(callspec=SimpleNamespace(params=dict(zip(axes, values, strict=True))))
        for values in product(*axes.values())
    ]
    left = superfluous(rows)
    kept = [row.callspec.params for row in rows if row not in left]
    assert len(kept) == 3
    for name, values in axes.items():
        assert {row[name] for row in kept} == {*values}


def test_a_part_is_of_the_values() -> None:
    first, other = quick([("llama", 1), ("gpt2", 2)], [("llama", 1)])
    assert first == ("llama", 1)
    assert other.values == ("gpt2", 2)
    assert [mark.name for mark in other.marks] == ["long"]
    with pytest.raises(AssertionError):
        quick(["llama"], ["lama"])
