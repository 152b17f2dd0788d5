import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bishare_dsl.diagnostics import SpecError
from bishare_dsl.language import format_text, parse_spec, read, spec_text
from bishare_dsl.language.grammar import words
from bishare_dsl.spec import Spec
from bishare_dsl.testing.any_specs import layouts, specs

WORDS = [*words(), "q_proj", "layer", "8", "0.5", '"odd name"', "\n", "# comment\n"]


@given(st.lists(st.sampled_from(WORDS), max_size=60))
@example(["not", "in"])
def test_any_words_give_a_spec_or_located_errors(words):
    """`test_limits` has bytes, and mutated specs."""
    try:
        parse_spec(" ".join(words))
    except SpecError as error:
        problems, rendered = error.problems, str(error)
    else:
        return
    assert problems
    assert rendered
    assert all(problem.span is not None for problem in problems if problem.code != "BS199")


@given(specs())
def test_a_spec_s_text_says_the_same_and_is_formatted(spec):
    text = spec_text(spec)
    assert parse_spec(text) == spec
    assert format_text(text) == text


@given(specs())
def test_what_is_read_is_what_pydantic_would_accept(spec):
    read_back, where = read(spec_text(spec))
    assert Spec.model_validate(read_back.model_dump()) == read_back
    told = {("name",)}
    told |= {("target",)} if spec.target else set()
    told |= {("shares", 0, "rank")} if spec.shares else set()
    assert set(where.spans) >= told


@given(layouts())
def test_formatting_keeps_meaning_and_comments_wherever_they_stand(layout):
    spec, text, comments = layout
    once = format_text(text)
    assert parse_spec(once) == spec
    assert format_text(once) == once
    assert [comment for comment in comments if once.count(comment) != 1] == []


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r"])
def test_line_breaks_and_a_byte_order_mark_mean_nothing(line_break):
    text = "# a\nspec x\ntarget q # b\nshare s per layer rank 1\n"
    other = "\ufeff" + text.replace("\n", line_break)
    assert parse_spec(other.encode()) == parse_spec(text)
    assert format_text(other) == format_text(text)
