"""docs/language.md covers the language: its tables are tried too, and no word of the grammar is left out."""

import re
from pathlib import Path
from typing import get_args

import pytest

from bishare_dsl.language import parse_spec
from bishare_dsl.language.tables import tables
from bishare_dsl.language.vocabulary import LATER
from bishare_dsl.models import preset
from bishare_dsl.plan import build_plan
from bishare_dsl.spec import ATTRIBUTES, Initial
from bishare_dsl.transforms import transform_kind, transform_names

TEXT = (Path(__file__).parents[2] / "docs" / "language.md").read_text(encoding="utf-8")
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


def said(name):
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", TEXT)


@pytest.mark.parametrize("word", sorted({*tables().words, *LATER}))
def test_words_of_the_grammar(word):
    assert said(word) if word.isalpha() else word in TEXT


@pytest.mark.parametrize("name", [*ATTRIBUTES, *get_args(Initial)])
def test_attributes_and_starts(name):
    assert said(f"`{name}`")


@pytest.mark.parametrize("kind", [transform_kind(name) for name in transform_names() if name != "Identity"])
def test_transforms_and_their_options(kind):
    """The table has each option with its default first."""
    row = next(line for line in TEXT.splitlines() if line.startswith(f"| `{kind.name}`"))
    for name, field in kind.model_fields.items():
        default = {None: "rank", False: "false"}.get(field.default, field.default)
        assert f"`{field.alias or name} = {default}`" in row


def test_keywords_are_listed():
    listed = TEXT[TEXT.index("Keywords are") : TEXT.index("**Numbers**")]
    keywords = {word for word in tables().words if word.isalpha()} | LATER
    assert set(re.findall(r"`(\w+)`", listed)) == keywords
