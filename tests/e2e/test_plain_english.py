"""The data of the demo: the compiler that marks answers must find those right that are meant."""

from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def english(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    import plain_english

    return plain_english


def test_every_statement_is_another_one_and_right(english):
    drawn = english.examples(60)
    assert len({example.answer for example in drawn}) == 60
    assert {english.mark(example, example.answer) for example in drawn} == {english.Mark.RIGHT}


def test_more_examples_start_with_the_same_ones(english):
    assert english.examples(30)[:10] == english.examples(10)
    assert english.examples(10, seed=1) != english.examples(10)


@pytest.mark.parametrize(
    ("answer", "mark"),
    [
        ("share tier where v_proj, q_proj per layer rank 8 via SS", "RIGHT"),
        ("share tier where q_proj, v_proj rank 8 per layer via SS(slice = centre)", "RIGHT"),
        ("share tier where q_proj, v_proj per layer rank 4 via SS(slice = centre)", "FITS"),
        ("share other where q_proj, v_proj per layer rank 8 via SS(slice = centre)", "FITS"),
        ("share tier where q_proj, v_proj per layer rank 8", "PARSES"),
        ("share tier where qproj per layer rank 8 via SS", "PARSES"),
        ("Sure! Here is your share statement.", "NOTHING"),
        ("", "NOTHING"),
    ],
)
def test_marks(english, answer, mark):
    asked = "share tier where q_proj, v_proj per layer rank 8 via SS(slice = centre)"
    assert english.mark(english.Example("", asked), answer).name == mark
