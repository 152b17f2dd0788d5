from hypothesis import given
from hypothesis import strategies as st

from bishare_dsl.show.solve import LIMIT, Solution, largest


def counted(count):
    """`count`, and a list of what it was asked."""
    asked = []

    def wrapped(value):
        asked.append(value)
        return count(value)

    return wrapped, asked


@given(st.integers(0, 10**6), st.integers(1, 10**4), st.integers(0, 10**9))
def test_it_is_the_last_within_the_budget(start, slope, budget):
    count, asked = counted(lambda value: start + slope * value)
    found = largest(count, budget)
    assert found.grows
    if start > budget:
        assert found == Solution(None, (0, start), True)
        return
    value = min((budget - start) // slope, LIMIT)
    assert found.best == (value, start + slope * value)
    assert found.after == (value + 1, start + slope * (value + 1))
    assert len(asked) == len(set(asked)) < 120


@given(st.integers(2, 32), st.integers(1, 1500))
def test_values_that_are_not_possible_are_passed_over(step, budget):
    found = largest(lambda value: value if value % step == 0 else None, budget)
    assert found.best == (budget // step * step, budget // step * step)
    assert found.grows


def test_counts_that_fall_are_told():
    assert not largest(lambda size: 100 * size + 10**6 // size if size else None, 30_000).grows


def test_no_value_is_possible():
    assert largest(lambda value: None, 10) == Solution(None, None, True)
