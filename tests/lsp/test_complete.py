"""What is offered where somebody is writing."""

import pytest

from bishare_dsl.language.grammar import words
from bishare_dsl.lsp.complete import completions
from bishare_dsl.lsp.words import MEANINGS
from bishare_dsl.models import PRESETS
from bishare_dsl.resources import shipped_specs
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
        (f"{HEAD}share a per layer rank 4 via KE(|", {"size", "kernel", "rowwise"}, {"slice", "r"}),
        (f"{HEAD}share a per layer rank 4 via KE(size = 4, |", {"kernel"}, {"size", "slice"}),
        (f"{HEAD}share a per layer rank 4 via KE(kernel = |", {"ones", "r"}, {"size", "centre"}),
        (f"{HEAD}share a per layer rank 4 via KE(rowwise = |", {"true", "false"}, {"ones"}),
        (f"{HEAD}share a per layer rank 4 via KE(size = |", {"r"}, {"ones", "size"}),
        (f"{HEAD}share a per layer rank 4 init A |", {"zeros", "normal"}, {"constant", "q_proj"}),
        (f"{HEAD}share a per layer rank 4 via KE freeze |", {"A", "K_A", "K_B"}, {"G_id"}),
        (f"{HEAD}share a per layer rank 4 via Shards freeze |", {"A", "B"}, {"I_A"}),
        (f"{HEAD}share a per layer rank 4 via Shards init |", {"A", "B"}, {"I_A"}),
        (f"{HEAD}share a per layer rank 4 via Shards |", {"I_A", "freeze"}, {"size"}),
        (f"{HEAD}scale |", {"r", "alpha", "rank"}, {"mlp", "q_proj"}),
        ("spec s\nuse |", {"lora", "bishare_ke"}, {"share", "my.share"}),
        ("spec s\nuse \"lo|\"", {"lora"}, {"share"}),
        ("spec s\nuse lora\nreplace param |", {"r"}, {"share"}),
        (f"{HEAD}share a where |", {"attention_inputs", "mlp_ups"}, {"share"}),
        ("spec |", set(), {"share", "q_proj", "lora"}),
        (f"{HEAD}# |", set(), {"share", "llama-7b"}),
        ("# model: |", set(PRESETS), {"share"}),
        ("# model: llama-|", {"llama-7b"}, {"share"}),
        (f"{HEAD}share a per layer ra|", {"rank"}, {"r"}),
        (f"{HEAD}shar broken\nshare a per layer via |", {"KE"}, {"layer"}),
    ],
)  # fmt: skip
def test_what_may_stand_here_is_offered(offered, text, some, none):
    labels = set(offered(text))
    assert some <= labels
    assert not none & labels


def test_all_transforms_and_all_specs_are_offered(offered):
    names = {*transform_names()} - {"Identity"}  # as BS204 lists them
    assert set(offered(f"{HEAD}share a per layer rank 4 via |")) == names
    assert set(shipped_specs()) <= set(offered("spec s\nuse |"))


def test_kinds_come_first_after_target(offered):
    found = [*offered(f"{MODEL}spec s\ntarget |").values()]
    assert [item.label for item in found[:3]] == ["q_proj", "k_proj", "v_proj"]
    assert [item.sort_text for item in found] == sorted(item.sort_text for item in found)


def test_a_name_is_offered_only_below_its_declaration(offered):
    found = offered(f"{MODEL}spec s\nparam a = 1\nparam b = |\nparam c = 2\n")
    assert "a" in found
    assert not {"b", "c"} & set(found)


def test_names_of_used_files_are_offered(offered, tmp_path):
    (tmp_path / "base.share").write_text("spec base\nparam deep = 3\nlet late = layer > 3\n")
    found = offered('spec s\nuse "base.share"\ntarget q_proj\nshare a per layer rank |')
    assert found["deep"].documentation.value == "`param deep = 3`"
    assert "late" in offered('spec s\nuse "base.share"\ntarget |')
    assert "base.share" in offered("spec s\nuse |")


def test_what_is_begun_is_written_over_in_quotes_where_it_needs_some(offered):
    item = offered('spec s\nuse "lo|"\ntarget q_proj')["lora"]
    edit = item.text_edit
    assert (edit.new_text, item.filter_text) == ('"lora"', '"lora"')
    assert (edit.range.start.character, edit.range.end.character) == (4, 8)
    item = offered(f"{HEAD}share a per layer ra|")["rank"]
    assert item.text_edit.range.start.character == len("share a per layer ")
    edit = offered("# model: llama-|\nspec s\n")["llama-7b"].text_edit
    assert (edit.new_text, edit.range.start.character) == ("llama-7b", len("# model: "))
    found = offered('spec s\nparam "odd name" = 2\ntarget q_proj\nshare a per layer rank |')
    assert {item.text_edit.new_text for item in found.values()} >= {'"odd name"', "layer"}


def test_every_word_has_a_meaning():
    keywords = {word for word in words() if word.isalpha()}
    assert {*keywords, *ATTRIBUTES, *FUNCTIONS} <= set(MEANINGS)
