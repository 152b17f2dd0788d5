"""One name is renamed in all files that share its declaration, and in no other."""

from os.path import realpath

import pytest

from bishare_dsl.language.syntax import span_of
from bishare_dsl.lsp.document import Document
from bishare_dsl.lsp.rename import CannotRename, find_renames

FILES = {
    "base.share": "spec base\nparam r = 4\nparam s = r\nlet late = layer > 3\n",
    "one.share": 'spec one\nuse "base.share"\ntarget q_proj\nshare a where late per layer rank r\n',
    "two.share": 'spec two\nuse "one.share"\nreplace param r = 8\n',
    "apart.share": "spec apart\nparam r = 4\ntarget r_proj\nshare a per layer rank r\n",
}


@pytest.fixture
def rename(tmp_path):
    """The texts that change when the name at the first ``what`` of a file gets another."""

    def rename(name, what, new):
        documents = {}
        for file, text in FILES.items():
            (tmp_path / file).write_text(text)
        for file, text in FILES.items():
            documents[realpath(tmp_path / file)] = Document(text, str(tmp_path / file))
        document = documents[realpath(tmp_path / name)]
        places, text = find_renames(document, document.text.index(what), new, documents)
        changed = {}
        for path, (file, tokens) in places.items():
            content = file.source.text
            for token in sorted(tokens, key=lambda token: span_of(token).start, reverse=True):
                start, end = (
                    at - file.source.start for at in (span_of(token).start, span_of(token).end)
                )
                content = content[:start] + text + content[end:]
            changed[path.rpartition("/")[2]] = content
        return changed

    return rename


@pytest.mark.parametrize(
    ("file", "what"), [("base.share", "r = 4"), ("one.share", "r\n"), ("two.share", "r = 8")]
)
def test_a_param_across_use(rename, file, what):
    what = "rank r\n" if what == "r\n" else what
    at = {"rank r\n": "r\n"}.get(what, what)
    FILES_AFTER = {
        "base.share": FILES["base.share"]
        .replace("param r = 4", "param deep = 4")
        .replace("= r", "= deep"),
        "one.share": FILES["one.share"].replace("rank r", "rank deep"),
        "two.share": FILES["two.share"].replace("param r", "param deep"),
    }
    assert rename(file, at, "deep") == FILES_AFTER


def test_a_let_where_it_is_used(rename):
    found = rename("one.share", "late", "upper half")
    assert set(found) == {"base.share", "one.share"}
    assert 'where "upper half" per' in found["one.share"]


def test_a_file_of_its_own_is_left_alone(rename):
    assert set(rename("apart.share", "r = 4", "deep")) == {"apart.share"}


@pytest.mark.parametrize(
    ("file", "what", "new", "why"),
    [
        ("one.share", "q_proj", "x", "only the names of params and lets"),
        ("base.share", "r = 4", "layer", "already means something"),
        ("base.share", "r = 4", "late", "is declared in"),
        ("base.share", "r = 4", "", "a character at least"),
    ],
)
def test_what_cannot_be_renamed_says_why(rename, file, what, new, why):
    with pytest.raises(CannotRename, match=why):
        rename(file, what, new)


def test_a_name_of_a_shipped_spec_stays(tmp_path):
    document = Document('spec s\nuse "lora"\nreplace param r = 4\n', str(tmp_path / "my.share"))
    with pytest.raises(CannotRename, match="ships with bishare"):
        find_renames(document, document.text.index("r = 4"), "deep", {})


def test_not_to_a_kind_of_the_model(tmp_path):
    text = "# model: llama-7b\nspec s\nparam r = 4\ntarget q_proj\nshare a per layer rank r\n"
    document = Document(text, str(tmp_path / "my.share"))
    with pytest.raises(CannotRename, match="a kind of module of llama-7b"):
        find_renames(document, text.index("r = 4"), "v_proj", {})
