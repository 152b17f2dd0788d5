import re

import pytest

from bishare_dsl.diagnostics import SpecError
from bishare_dsl.diagnostics.codes import registry
from bishare_dsl.diagnostics.pages import main, pages
from bishare_dsl.language import parse_spec

CODES = list(registry().values())
LANGUAGE = [code for code in CODES if code.code.startswith("BS1")]


def encoded(text):
    # A lone surrogate in an example stands for a byte that is not UTF-8.
    return text.encode(errors="surrogateescape")


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.code)
def test_a_code_is_whole(code):
    assert re.fullmatch(r"BS\d{3}", code.code)
    assert code.title
    assert code.message
    assert code.explanation or (code.code[2] in "5789" and not code.bad)


@pytest.mark.parametrize(
    "code", [c for c in CODES if c.bad and c.good and not c.shell], ids=lambda code: code.code
)
def test_examples_can_be_read_but_for_mistakes_of_reading(code):
    assert parse_spec(encoded(code.good))
    if code in LANGUAGE:
        with pytest.raises(SpecError) as caught:
            parse_spec(encoded(code.bad))
        assert [problem.code for problem in caught.value.problems] == [code.code]
    else:
        assert parse_spec(encoded(code.bad))


def test_every_code_that_is_explained_has_a_page_and_the_index_names_all(tmp_path):
    made = pages(registry())
    explained = [code for code in CODES if code.explanation]
    assert set(made) == {"README.md", *(f"{code.code}.md" for code in explained)}
    assert all(f"({code.code}.md)" in made["README.md"] for code in explained)
    assert all(
        f"{code.code}: {code.title}"
        in made["README.md"].replace(f"[{code.code}]({code.code}.md)", code.code)
        for code in CODES
    )
    assert main([str(tmp_path)]) == 0
    assert main(["--check", str(tmp_path)]) == 0
    (tmp_path / "BS110.md").write_text("stale")
    assert main(["--check", str(tmp_path)]) == 1
    assert main([]) == 2


@pytest.mark.parametrize("code", registry().values(), ids=lambda code: code.code)
def test_a_remedy_says_what_to_do_in_a_line(code):
    assert len(code.remedy or "") <= 110
