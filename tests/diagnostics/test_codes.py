import json
import os
import re

import pytest

from bishare_dsl.cli.main import main
from bishare_dsl.diagnostics import SpecError
from bishare_dsl.diagnostics.codes import registry
from bishare_dsl.language import parse_spec
from bishare_dsl.resources import error_page
from tests.diagnostics.pages import page, shown

CODES = list(registry().values())
PAGES = error_page("BS101").parent
STAGES = {
    "1": "Reading a text",
    "2": "What a spec means",
    "3": "A spec against a model",
    "4": "Rewriting a model",
    "5": "Finding and loading models",
    "6": "Adapters",
    "7": "Training, its data first",
    "8": "Evaluating and generating",
    "9": "Using the command line",
}


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.code)
def test_a_code_is_whole_and_its_page_is_about_it(code):
    assert re.fullmatch(r"BS\d{3}", code.code)
    assert code.title
    assert code.message
    assert len(code.remedy or "") <= 110, "a remedy says what to do in a line"
    if error_page(code.code).is_file():
        about = page(code.code)
        assert (about.code, about.title, about.severity) == (code.code, code.title, code.severity)
    else:
        assert code.code[2] in "5789", "the codes of the language, models and files have a page"


def test_no_page_is_of_a_code_that_is_gone():
    assert {path.stem for path in PAGES.glob("BS*.md")} <= registry().keys()


def test_the_index_names_every_code():
    """`UPDATE_GOLDEN=1 pytest tests/diagnostics` writes it."""
    index = "# Diagnostics\n"
    for digit, stage in STAGES.items():
        index += f"\n## BS{digit}xx: {stage}\n\n"
        for code in CODES:
            has_page = error_page(code.code).is_file()
            name = f"[{code.code}]({code.code}.md)" if has_page else code.code
            index += f"- {name}: {code.title}\n" if code.code[2] == digit else ""
    file = PAGES / "README.md"
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(index, encoding="utf-8", newline="\n")
    assert file.read_text(encoding="utf-8") == index


def written(example):
    # A byte that is not UTF-8 cannot stand in a page.
    return example.encode().replace("\ufffd".encode(), b"\xf6")


@pytest.mark.parametrize("page", shown("share", "BS"), ids=lambda page: page.code)
def test_examples_of_specs(page, tmp_path, capsys):
    def found(example):
        (tmp_path / "example.share").write_bytes(written(example))
        main(["check", str(tmp_path / "example.share"), "--model", "llama-7b", "--json"])
        return {
            problem["code"]: problem["severity"]
            for problem in json.loads(capsys.readouterr().out)["problems"]
        }

    if page.bad and page.code.startswith("BS1"):
        with pytest.raises(SpecError) as caught:
            parse_spec(written(page.bad))
        assert [problem.code for problem in caught.value.problems] == [page.code]
    # No preset has a layer that a target means and does not get: see tests/plan/test_left_out.py.
    if page.bad and page.code != "BS313":
        assert page.code in found(page.bad)
    mended = found(page.good)
    assert page.code not in mended
    # What a module is called in another model, a page may write.
    assert {code for code, severity in mended.items() if severity == "error"} <= {"BS301"}
