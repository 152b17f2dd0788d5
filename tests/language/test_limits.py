from itertools import islice, product

import pytest

from bishare_dsl.diagnostics import SpecError
from bishare_dsl.language import parse_spec
from bishare_dsl.language.parse import MAX_BYTES
from bishare_dsl.language.read import survey
from bishare_dsl.spec import expression
from tests.language.hostile import outcome, text_of

HEAD = "spec x\ntarget q\nshare s per layer rank "


def codes(text):
    with pytest.raises(SpecError) as caught:
        parse_spec(text)
    return [problem.code for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b" " * 10_000_000, "BS102"),
        (HEAD + "(" * 10_000 + "1" + ")" * 10_000, "BS108"),
        (HEAD + "(" * 10_000, "BS108"),
        (HEAD + "not " * 10_000 + "1", "BS108"),
        (HEAD + "1 + " * 10_000 + "1", "BS108"),
        (HEAD + "9" * 5_000, "BS107"),
        (HEAD + "1e999", "BS107"),
        (HEAD + "1e-999", "BS107"),
        (HEAD + "\0", "BS103"),
        ("#a\fb", "BS120"),
        ("# a\x85b\n", "BS120"),
        (HEAD + "x" * 60_000 + " §", "BS103"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) == 5 else "",
)
def test_extremes_end_in_an_error_of_their_own(text, code):
    assert code in codes(text)


def test_a_long_line_of_many_words_is_read():
    spec = parse_spec(
        f"spec x target {', '.join(f'q{i}' for i in range(5_000))} share s per layer rank 1"
    )
    assert len(spec.target.include) == 5_000


def test_of_very_many_errors_the_first_are_shown_and_the_rest_counted():
    found = codes("spec x\n" + "share )\n" * 8_000)
    assert len(found) == 101
    assert found[-1] == "BS199"


def test_of_a_pattern_with_very_many_choices_the_first_are_written_out(monkeypatch):
    def first_of(*choices):
        yield from islice(product(*choices), 8)
        raise AssertionError("as many globs as there are combinations")

    monkeypatch.setattr(expression, "product", first_of)
    assert len(expression.globs_of(f"({'|'.join('ab' * 50)})" * 2)) == 8


def test_64_levels_are_allowed_and_65_are_not():
    assert parse_spec(HEAD + "(" * 63 + "1" + ")" * 63)
    assert codes(HEAD + "(" * 64 + "1" + ")" * 64) == ["BS108"]


@pytest.mark.parametrize("start", range(0, 1000, 100))
def test_a_mutated_spec_is_a_spec_or_a_located_error(start):
    """`make hostile` does so with 10,000, and counts their time."""
    for number in range(start, start + 100):
        assert outcome(text_of(number))


def test_two_keys_of_a_share_whose_first_one_is_a_name_are_said_as_one():
    """The word `per` stands nowhere in the first of them."""
    assert codes("spec x\ntarget q\nshare a x per layer x per kind rank 8") == ["BS124"]


def test_the_size_of_a_text_is_that_of_its_bytes():
    text = "# " + "é" * (MAX_BYTES // 2) + "\nspec x\ntarget q\nshare s per layer rank 1\n"
    assert len(text) < MAX_BYTES < len(text.encode())
    assert codes(text) == codes(text.encode()) == ["BS102"]
    assert [problem.code for problem in survey(text).problems] == ["BS102"]


def test_a_text_and_what_it_uses_have_one_limit_together(tmp_path):
    """Each of the two files is small enough by itself."""
    half = "# " + "x" * (MAX_BYTES // 2) + "\n"
    (tmp_path / "other.share").write_text(f"{half}spec other\nparam r = 4\n", encoding="utf-8")
    text = f'spec s\n{half}use "other.share"\ntarget q_proj\nshare a per layer rank r\n'
    result = survey(text, str(tmp_path / "s.share"))
    assert "BS102" in [problem.code for problem in result.problems]
    shorter = text.replace(half, "")
    assert survey(shorter, str(tmp_path / "s.share")).problems == ()
