from hypothesis import given
from hypothesis import strategies as st

from bishare_dsl.show.solve import LIMIT, NoSolution, Solution, largest


def counted(count):
    """`count`, and a list of what it was asked."""
    asked = []

    def wrapped(value):
        asked.append(value)
        return count(value)

    return wrapped, asked


@given(st.integers(0, 10**6), st.integers(1, 10**4), st.integers(0, 10**9))
def test_where_counts_grow_it_is_the_last_within_the_budget(start, slope, budget):
    count, asked = counted(lambda value: start + slope * value)
    found = largest(count, budget)
    if start > budget:
        assert found == NoSolution((0, start))
        return
    value = min((budget - start) // slope, LIMIT)
    assert (found.value, found.count) == (value, start + slope * value)
    assert found.grows
    assert found.sure
    if value < LIMIT:
        assert found.after == (value + 1, start + slope * (value + 1))
    assert len(asked) == len(set(asked)) < 120


def test_counts_that_fall_and_then_rise():
    # As the size of KE: what is shared grows, the kernels shrink.
    def count(size):
        return 100 * size + 10**6 // size if size else None

    found = largest(count, 30_000)
    assert isinstance(found, Solution)
    assert found.value == max(v for v in range(1, 5000) if count(v) <= 30_000)
    assert not found.grows
    assert not found.sure  # It grows from where the answer is.


def test_a_dip_between_two_powers_of_two_is_found():
    def count(value):
        return 5 if value == 97 else 10 + abs(value - 97)

    assert largest(count, 6) == Solution(97, 5, (98, 11), grows=False, sure=True)
    assert largest(count, 4) == NoSolution((97, 5))


@given(st.integers(2, 200), st.integers(1, 1500))
def test_values_that_are_not_possible_are_passed_over(step, budget):
    found = largest(lambda value: value if value % step == 0 else None, budget)
    assert found.value == budget // step * step
    assert found.grows


def test_no_value_is_possible():
    assert largest(lambda value: None, 10) == NoSolution(None)


def test_it_says_where_it_could_not_try_all():
    # A wave: whatever is tried, the largest is not known to be the largest.
    found = largest(lambda value: value + 50_000 * (value % 2), 100_000)
    assert isinstance(found, Solution)
    assert not found.grows
    assert found.count <= 100_000
    assert not found.sure
