"""Advice on wrong specs is followed literally, on a model: the problem is gone, and no fewer modules share."""

import re
from collections import defaultdict
from pathlib import Path

import pytest

from bishare_dsl.compiler import advised, make_plan
from bishare_dsl.diagnostics import BishareError, SpecError
from bishare_dsl.diagnostics.codes import registry
from bishare_dsl.language.read import survey
from bishare_dsl.models.presets import preset
from bishare_dsl.plan.sharing import Sharing, asked, sharing
from tests.diagnostics.pages import shown
from tests.language.test_slips import EXAMPLES
from tests.messages.wrong_specs import draw
from tests.plan.test_problems import ERRORS, WARNINGS

PASTE = re.compile(r"(write|did you mean) `[^`]+`\??")
INPUTS = sorted((Path(__file__).parent / "inputs").glob("*.share"))


def outcome(text, name, model):
    """Return the problems of a text, with advice, and its plan."""
    found = survey(text, name)
    try:
        if found.spec is None:
            raise advised(SpecError(found.problems, found.where), None, preset(model))
        resolved = make_plan(found.spec, preset(model), where=found.where)
        return resolved.problems, resolved.plan
    except BishareError as error:
        return error.problems, None


def wanted(text, name, model):
    """Return what the keys of a text ask to share."""
    spec = survey(text, name).spec
    return Sharing(0) if spec is None else asked(spec, preset(model))


def written(text, edits):
    for edit in sorted(edits, key=lambda edit: -edit.span.start):
        text = text[: edit.span.start] + edit.text + text[edit.span.end :]
    return text


def keyed(problems, text):
    """Return problems with their lines: what was skipped before may have the same problem below."""
    lines = [text.count("\n", 0, one.span.start) if one.span else None for one in problems]
    return [(one.code, one.message, line) for one, line in zip(problems, lines, strict=True)]


def check_advice(text, name, model):
    problems, _ = outcome(text, name, model)
    before = wanted(text, name, model)
    for problem in problems:
        if not problem.edits:
            # A text to paste is one that was tried.
            assert problem.severity != "error" or not PASTE.fullmatch(problem.help or ""), problem
            continue
        new = written(text, problem.edits)
        after, plan = outcome(new, name, model)
        old_keys, keys = keyed(problems, text), keyed(after, new)
        (key,) = keyed([problem], text)
        assert keys.count(key) < old_keys.count(key), problem
        if plan is not None:
            assert sharing(plan).fraction >= before.fraction, problem


@pytest.mark.parametrize(
    "wrong", [*zip(range(60), draw(11), strict=False)], ids=lambda w: w[1].slip
)
def test_advice_on_a_drawn_mistake_can_be_followed(wrong):
    check_advice(wrong[1].text, "mine.share", wrong[1].model)


def catalogue():
    """Return wrong specs by the code that each is answered with, from the pages, tables and inputs of tests."""
    texts = defaultdict(list)
    for text, code, *_ in ERRORS + WARNINGS:
        texts[code].append(f"spec test\n{text}")
    for about in shown("share", "BS1", "BS2", "BS3"):
        texts[about.code].append(about.bad)
    for text, _ in EXAMPLES:
        texts["BS110"].append(f"{text}\n")
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
        check_advice(text, "mine.share", "llama-7b")


def test_the_catalogue_has_each_code_of_a_text():
    of_files = {
        *["BS101", "BS102", "BS131", "BS133", "BS136", "BS137", "BS140", "BS141", "BS199", "BS230"]
    }
    given_apart = {"BS207", "BS214", "BS313", "BS315", "BS316", "BS317", "BS318", "BS320", "BS323"}
    codes = {code for code in registry() if code.startswith(("BS1", "BS2", "BS3"))}
    assert codes - {*catalogue()} <= of_files | given_apart
