"""What is offered where somebody is writing."""

import pytest

from bishare_dsl.language.grammar import words
from bishare_dsl.lsp.complete import completions
from bishare_dsl.lsp.words import MEANINGS
from bishare_dsl.spec import ATTRIBUTES
from bishare_dsl.spec.expression import FUNCTIONS
from bishare_dsl.transforms import transform_names
from tests.lsp.conftest import MODEL

HEAD = f"{MODEL}spec s\nparam r = 4\nlet mlp = up_proj, down_proj\ntarget q_proj, mlp\n"


@pytest.fixture
def offered(at):
    def offered(text):
        return {item.label: item for item in completions(*at(text))}

    return offered


@pytest.mark.parametrize(
    ("text", "some", "none"),
    [
        ("|", {"spec", "target", "share", "param"}, {"rank", "q_proj"}),
        (f"{MODEL}spec s\ntarget |", {"q_proj", "down_proj", "layer", "parent", "not"}, {"share"}),
        (f"{MODEL}spec s\ntarget q_proj, parent |", {"self_attn", "mlp"}, {"q_proj", "layer"}),
        (f"{HEAD}share a |", {"per", "rank", "via", "where", "A"}, {"q_proj", "r"}),
        (f"{HEAD}share a where |", {"mlp", "q_proj", "layer"}, {"KE"}),
        (f"{HEAD}share a per |", {"model", "layer", "module", "kind", "mlp"}, {"KE", "via"}),
        (f"{HEAD}share a per layer, |", {"layer", "parent"}, {"via"}),
        (f"{HEAD}share a per layer rank |", {"r", "match", "layers", "sqrt"}, {"q_proj", "mlp"}),
        (f"{HEAD}share a per layer rank 4 |", {"via", "share", "init"}, {"q_proj", "spec s"}),
        (f"{HEAD}share a per layer rank match kind {{ |", {"q_proj"}, {"via"}),
        (f"{HEAD}share a per layer rank 4 via |", {"KE", "SS", "GT"}, {"size", "r", "layer"}),
        (f"{HEAD}scale |", {"r", "alpha", "rank"}, {"mlp", "q_proj"}),
        (f"{HEAD}share a where |", {"attention_inputs", "mlp_ups"}, {"share"}),
        ("spec |", set(), {"share", "q_proj", "lora"}),
        (f"{HEAD}# |", set(), {"share", "q_proj"}),
        (f"{HEAD}share a per layer rank 4 via KE(|", set(), {"share", "q_proj"}),
        (f"{HEAD}share a per layer ra|", {"rank"}, {"r"}),
        (f"{HEAD}shar broken\nshare a per layer via |", {"KE"}, {"layer"}),
    ],
)  # fmt: skip
def test_what_may_stand_here_is_offered(offered, text, some, none):
    labels = set(offered(text))
    assert some <= labels
    assert not none & labels


def test_all_transforms_are_offered(offered):
    names = {*transform_names()} - {"Identity"}  # as BS204 lists them
    places = {"A", "B", "between"}
    assert set(offered(f"{HEAD}share a per layer rank 4 via |")) == names | places
    for before in ("A", "A SS then", "A SS, between", "SS then"):
        assert set(offered(f"{HEAD}share a per layer rank 4 via {before} |")) == names


def test_kinds_come_first_after_target(offered):
    found = [*offered(f"{MODEL}spec s\ntarget |").values()]
    assert [item.label for item in found[:3]] == ["q_proj", "k_proj", "v_proj"]
    assert [item.sort_text for item in found] == sorted(item.sort_text for item in found)


def test_a_name_is_offered_only_below_its_declaration(offered):
    found = offered(f"{MODEL}spec s\nparam a = 1\nparam b = |\nparam c = 2\n")
    assert "a" in found
    assert not {"b", "c"} & set(found)


def test_what_is_begun_is_written_over_in_quotes_where_it_needs_some(offered):
    item = offered(f"{HEAD}share a per layer ra|")["rank"]
    assert item.text_edit.range.start.character == len("share a per layer ")
    odd = 'spec s\nlet "odd name" = q_proj\ntarget '
    found = offered(f"{odd}|")
    assert {item.text_edit.new_text for item in found.values()} >= {'"odd name"', "layer"}
    item = offered(f'{odd}"od|"\n')["odd name"]
    assert (item.text_edit.new_text, item.filter_text) == ('"odd name"', '"odd name"')
    edit = item.text_edit
    assert (edit.range.start.character, edit.range.end.character) == (7, 11)


def test_every_word_has_a_meaning():
    keywords = {word for word in words() if word.isalpha()}
    assert {*keywords, *ATTRIBUTES, *FUNCTIONS} <= set(MEANINGS)
