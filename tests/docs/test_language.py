"""The reference covers the language: its tables are tried too, and no word of the grammar is left out."""

import re
from pathlib import Path
from typing import get_args

import pytest

from bishare_dsl.language import parse_spec
from bishare_dsl.language.grammar import words
from bishare_dsl.models import preset
from bishare_dsl.plan import build_plan
from bishare_dsl.spec import ATTRIBUTES, Initial
from bishare_dsl.transforms import GAIN_OUT, GAIN_RANK, transform_kind, transform_names

DOCS = Path(__file__).parents[2] / "docs"
TEXT = "".join(
    (DOCS / name).read_text(encoding="utf-8")
    for name in ("language.md", "modules.md", "transforms.md")
)
HEAD = "spec x let mlp = up_proj, down_proj target q_proj, k_proj, v_proj, mlp, parent self_attn"


def first_column(header):
    """The pieces of code in the first column of the table with this header."""
    table = TEXT[TEXT.index(header) :].split("\n\n")[0].splitlines()[2:]
    return [code for row in table for code in re.findall(r"`([^`]+)`", row.split(" | ")[0])]


@pytest.mark.parametrize("condition", first_column("| condition | the sites |"))
def test_condition(condition):
    plan, _ = build_plan(
        parse_spec(f"{HEAD} share a where {condition} per module rank 1"), preset("llama-7b")
    )
    assert 0 < len({term.site for term in plan.terms}) < len(plan.sites)


@pytest.mark.parametrize("key", first_column("| | one factor pair for |"))
def test_key(key):
    plan, _ = build_plan(parse_spec(f"{HEAD} share a {key} rank 1 via SS"), preset("llama-7b"))
    assert plan.pools


def row_of(name):
    """Return the row of a transform in the table of transforms."""
    rows = [line for line in TEXT.splitlines() if line.startswith(f"| `{name}`")]
    assert rows, f"the table of transforms in docs/language.md needs a row for `{name}`"
    return rows[0]


def said(name):
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", TEXT)


@pytest.mark.parametrize("word", sorted(words()))
def test_words_of_the_grammar(word):
    assert said(word) if word.isalpha() else word in TEXT


# `constant` is how a gain starts, `choice` how indices do; no spec writes them.
@pytest.mark.parametrize(
    "name",
    [*ATTRIBUTES, GAIN_RANK, GAIN_OUT, *sorted({*get_args(Initial)} - {"constant", "choice"})],
)
def test_attributes_and_starts(name):
    assert said(f"`{name}`")


@pytest.mark.parametrize("name", [name for name in transform_names() if name != "Identity"])
def test_transforms_and_their_options_and_roles(name):
    """The table has each option with its default first, and the roles, which `freeze` takes by name."""
    kind, row = transform_kind(name), row_of(name)
    for field_name, field in kind.model_fields.items():
        option = field.alias or field_name
        default = "false" if field.default is False else field.default
        # Where the default depends on the rank, the row says how in words or in place of a value.
        assert (f"`{option} = {default}`" if default is not None else f"`{option}") in row
    assert all(f"`{role}`" in row for role in {*kind.pooled, *kind.owned} - {"A", "B"})


def test_keywords_are_listed():
    listed = TEXT[TEXT.index("Keywords are") : TEXT.index("**Numbers**")]
    keywords = {word for word in words() if word.isalpha()}
    assert set(re.findall(r"`(\w+)`", listed)) == keywords
