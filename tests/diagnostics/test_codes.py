import json
import re

import pytest

from bishare_dsl.cli.main import main
from bishare_dsl.diagnostics import SpecError
from bishare_dsl.diagnostics.codes import registry
from bishare_dsl.language import parse_spec
from bishare_dsl.resources import error_index, error_page
from tests.diagnostics.pages import page, shown

CODES = list(registry().values())
PAGES = error_page("BS101").parent


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.code)
def test_a_code_is_whole_and_its_page_is_about_it(code):
    assert re.fullmatch(r"BS\d{3}", code.code)
    assert code.message
    assert len(code.remedy or "") <= 110, "a remedy says what to do in a line"
    if error_page(code.code).is_file():
        about = page(code.code)
        assert (about.code, about.severity) == (code.code, code.severity)
        assert about.title == error_index()[code.code][0]


def test_no_page_is_of_a_code_that_is_gone():
    assert {path.stem for path in PAGES.glob("BS*.md")} <= registry().keys()


def test_the_index_has_a_title_for_every_code_in_order_below_its_stage():
    text = error_page("README").read_text(encoding="utf-8")
    listed = re.findall(
        r"^(?:## BS(\d)xx: .+|- (?:\[BS\d{3}\]\()?(BS\d{3}).*: .+)$", text, re.MULTILINE
    )
    expected = []
    for name in registry():
        if (name[2], "") not in expected:
            expected.append((name[2], ""))
        expected.append(("", name))
    assert listed == expected
    linked = re.findall(r"^- \[(BS\d{3})\]\(\1\.md\): ", text, re.MULTILINE)
    assert linked == [name for name in registry() if error_page(name).is_file()]


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
