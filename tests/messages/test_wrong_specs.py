"""Advice on wrong specs is followed literally, on a model: the text has fewer errors."""

import re
from collections import defaultdict
from pathlib import Path

import pytest

from bishare_dsl.diagnostics.codes import registry
from tests.diagnostics.pages import shown
from tests.language.test_slips import FOLDER as SLIPS
from tests.messages.wrong_specs import draw
from tests.plan.test_problems import DOCUMENTS
from tests.support.documents import answered, check_edits, texts_of

INPUTS = sorted((Path(__file__).parent / "inputs").glob("*.share"))


def check_advice(text, model):
    problems, _ = answered(text, model)
    check_edits(text, problems, model)


@pytest.mark.parametrize(
    "wrong", [*zip(range(60), draw(11), strict=False)], ids=lambda w: w[1].slip
)
def test_advice_on_a_drawn_mistake_can_be_followed(wrong):
    check_advice(wrong[1].text, wrong[1].model)


def catalogue():
    """Return wrong specs by the code that each is answered with, from the pages, tables and inputs of tests."""
    texts = defaultdict(list)
    for path in DOCUMENTS:
        texts[path.stem] += texts_of(path)
    for about in shown("share", "BS1", "BS2", "BS3"):
        texts[about.code].append(about.bad)
    texts["BS110"] += texts_of(SLIPS / "known.txt")
    for path in INPUTS:
        answer = path.with_suffix(".txt").read_text(encoding="utf-8")
        text = path.read_bytes().decode(errors="replace")
        for code in {*re.findall(r"^\w+\[(BS\d+)\]", answer, re.MULTILINE)}:
            texts[code].append(text.replace("\r\n", "\n").replace("\r", "\n"))
    return {code: [text for text in texts[code] if text] for code in sorted(texts)}


@pytest.mark.parametrize(
    ("code", "texts"), catalogue().items(), ids=lambda part: part * isinstance(part, str)
)
def test_each_remedy_of_the_catalogue_can_be_followed(code, texts, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent / "files")
    for text in texts:
        check_advice(text, "llama-7b")


def test_the_catalogue_has_each_code_of_a_text():
    of_files = {
        *["BS101", "BS102", "BS131", "BS133", "BS136", "BS137", "BS140", "BS141", "BS199", "BS230"]
    }
    given_apart = {
        "BS207",
        "BS214",
        "BS313",
        "BS315",
        "BS316",
        "BS317",
        "BS318",
        "BS320",
        "BS323",
        "BS326",
        "BS327",
    }
    codes = {code for code in registry() if code.startswith(("BS1", "BS2", "BS3"))}
    assert codes - {*catalogue()} <= of_files | given_apart
