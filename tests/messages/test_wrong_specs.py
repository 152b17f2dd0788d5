"""Wrong specs that are drawn get an answer each, and what an answer advises goes through."""

from pathlib import Path

import pytest

from bishare_dsl.compiler import _ADVICE, make_plan
from bishare_dsl.diagnostics import BishareError
from bishare_dsl.language import read
from bishare_dsl.models.presets import preset
from tests.messages.wrong_specs import answer, draw

INPUTS = sorted((Path(__file__).parent / "inputs").glob("*.share"))


def problems_of(text, name, model):
    where = None
    try:
        spec, where = read(text, name)
        return make_plan(spec, preset(model), where=where).problems, where
    except BishareError as error:
        return error.problems, error.where or where


def at_place(problems, where, start, end):
    found = []
    for problem in problems:
        span = problem.span or where.locate(problem.loc)
        if problem.severity == "error" and span and span.start < end and span.end > start:
            found.append(problem.code)
    return found


@pytest.mark.parametrize(
    "wrong", [*zip(range(60), draw(11), strict=False)], ids=lambda w: w[1].slip
)
def test_an_answer_has_advice_and_the_edits_of_it_can_be_read(wrong):
    wrong = wrong[1]
    problems, _where = problems_of(wrong.text, "mine.share", wrong.model)
    for problem in problems:
        assert problem.help, answer(wrong)
        text = wrong.text
        for edit in sorted(problem.edits, key=lambda edit: -edit.span.start):
            text = text[: edit.span.start] + edit.text + text[edit.span.end :]
        if problem.edits:
            after, _ = problems_of(text, "mine.share", wrong.model)
            assert problem not in after


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: path.stem)
def test_what_is_advised_in_place_of_a_word_does_not_fail_there(path, monkeypatch):
    monkeypatch.chdir(path.parent.parent / "files")
    text = path.read_bytes().decode(errors="replace")
    problems, where = problems_of(text, path.name, "llama-7b")
    for problem in problems:
        meant, span = _ADVICE.match(problem.help or ""), where.locate(problem.loc)
        if problem.loc and meant and span and where.source_of(span) is where.source:
            word = meant[1] or meant[2]
            after, at = problems_of(
                text[: span.start] + word + text[span.end :], path.name, "llama-7b"
            )
            if at is not None:
                assert not at_place(after, at, span.start, span.start + len(word)), problem
