"""Parts of the data never overlap, and are the same whoever draws them."""

import pytest
from sweep.data import Row, Size, distinct, normal, split
from sweep.tasks import NO_YES


def row(text, answer=0, passage=None):
    return Row(text, NO_YES, answer, normal(text), normal(passage or text))


def rows(count, start=0):
    return [row(f"text {number}", number % 2) for number in range(start, start + count)]


def texts(part):
    return {r.text for r in part}


@pytest.mark.parametrize("test", [None, rows(30, start=80)])
def test_no_text_is_in_two_parts(test):
    # Texts 80 to 99 are in both sources.
    parts = split(rows(100), test, Size(train=40, validation=10, test=20))
    assert [len(parts[name]) for name in ("train", "validation", "test")] == [40, 10, 20]
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not texts(parts[one]) & texts(parts[other])


def test_no_passage_of_the_test_source_is_trained_on_even_if_not_drawn():
    train = [row(f"question {n}", passage=f"passage {n % 10}") for n in range(50)]
    test = [row(f"other {n}", passage=f"passage {n}") for n in range(5)]
    parts = split(train, test, Size(train=50, validation=5, test=1))
    kept = [*parts["train"], *parts["validation"]]
    assert len(parts["test"]) == 1
    assert {r.passage for r in kept} == {f"passage {n}" for n in range(5, 10)}
    assert not {r.passage for r in parts["train"]} & {r.passage for r in parts["validation"]}


def test_a_split_does_not_depend_on_how_many_are_wanted():
    few, many = (split(rows(100), rows(50, 100), Size(n, 10, n)) for n in (20, 40))
    assert few["train"] == many["train"][:20]
    assert few["test"] == many["test"][:20]
    assert few["validation"] == many["validation"]


def test_rows_that_do_not_fit_are_in_no_part():
    parts = split(rows(100), None, Size(100, 10, 20), fits=lambda r: int(r.prompt.split()[1]) < 50)
    assert sum(map(len, parts.values())) == 50


def test_the_same_text_once_and_contradictions_not_at_all():
    given = [row("A cat."), row("a  CAT", 0), row("dog", 0), row("Dog!", 1)]
    assert distinct(given) == [given[0]]
