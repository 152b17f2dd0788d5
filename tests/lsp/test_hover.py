"""What is told of what stands under the pointer."""

import pytest

from bishare_dsl.lsp.hover import field_of, hover
from bishare_dsl.transforms import transform_kind, transform_names
from tests.lsp.conftest import MODEL

HEAD = f"{MODEL}spec s\nparam r = 4\nparam double = r * 2\nlet mlp = up_proj, down_proj\ntarget q_proj, mlp\n"
SHARE = "share intra per layer rank double via KE(size = 64)\n"


@pytest.fixture
def hover_text(at):
    def hover_text(text, **settings):
        document, position = at(text, **settings)
        found = hover(document, position)
        return found.contents.value if found else ""

    return hover_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HEAD + SHARE.replace("share", "sha|re"), "**intra** on llama-7b"),
        (HEAD + SHARE.replace("intra", "in|tra"), "96, private | 51,968 | 63% |"),
        (HEAD + SHARE.replace("double", "dou|ble"), "param **double** = `8`"),
        (HEAD.replace("target q_proj, mlp", "target q_proj, m|lp") + SHARE, "let **mlp**: 64 modules: `up_proj`, `down_proj` of layers 0..31"),
        (HEAD.replace("target q_proj", "target attention_|inputs") + SHARE, "Selects 96 modules: `q_proj`, `k_proj`, `v_proj` of"),
        (HEAD.replace("let mlp = up_proj", "let mlp = up_|proj") + SHARE, "Selects 32 modules: `up_proj` of layers 0..31."),
        (HEAD + SHARE.replace("per", "where layer in 4.|.7 or layer == 9 per"), "Selects 28 modules:"),
        (HEAD + SHARE.replace("per", "where layer in 4..7 o|r layer == 9 per"), "of layers 4..7, 9."),
        (HEAD + SHARE.replace("per", "where parent ml|p per"), "Selects 96 modules: `gate_proj`, `up_proj`, `down_proj`"),
        (HEAD + SHARE.replace("KE", "K|E"), "**KE**, Kronecker Extension"),
        (HEAD + SHARE.replace("KE", "K|E") + "share broken per\n", "Kronecker"),
        (HEAD + SHARE.replace("size", "si|ze"), "`size` takes a whole number, by default `256`: columns of the shared factors"),
        (HEAD + SHARE.replace("per layer", "per lay|er"), "The index of a site's block"),
        (HEAD + SHARE.replace("rank", "ra|nk"), "Rows of the factors"),
        ('spec s\nuse "b.share"\ntarget q_proj\nshare a per layer rank r|\n', "param **r** = `4`"),
        (HEAD.removeprefix(MODEL) + SHARE.replace("intra", "int|ra"), "One low-rank term"),
        (HEAD.replace("param r", "par|am r") + SHARE, "A value that"),
    ],
)  # fmt: skip
def test_what_is_told(hover_text, tmp_path, text, expected):
    (tmp_path / "b.share").write_text("spec b\nparam r = 4\n", encoding="utf-8")
    assert expected in hover_text(text)


def test_the_model_of_the_settings_counts_where_no_comment_names_one(hover_text):
    text = HEAD.removeprefix(MODEL) + SHARE.replace("intra", "int|ra")
    assert "on qwen2.5-7b" in hover_text(text, model="qwen2.5-7b")
    assert "on llama-7b" in hover_text(MODEL + text, model="qwen2.5-7b")


@pytest.mark.parametrize("text", ["|\n" + HEAD + SHARE, HEAD.replace("# mod", "# m|od") + SHARE])
def test_there_is_not_always_something_to_tell(hover_text, text):
    assert hover_text(text) == ""


@pytest.mark.parametrize("name", transform_names())
def test_every_option_says_what_it_is(name):
    kind = transform_kind(name)
    for own, field in kind.model_fields.items():
        assert field.description, (name, own)
        assert field_of(kind, field.alias or own) is field
