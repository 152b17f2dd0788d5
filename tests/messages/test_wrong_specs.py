"""Wrong specs that are drawn get an answer each, and what an answer advises goes through."""

from pathlib import Path

import pytest

from bishare_dsl.compiler import _ADVICE, make_plan
from bishare_dsl.diagnostics import BishareError
from bishare_dsl.language import read
from bishare_dsl.models.presets import preset
from tests.messages.follow import ends_right
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


# Where an answer leaves a choice, what somebody chooses.
CHOSEN = {
    "06_rank_0": ("rank 0", "rank 8"),
    "13_share_twice": ("share a  per layer", "share b  per layer"),
    "14_param_twice": ("param r = 4\n", "param q = 4\n"),
    "47_rank_in_pool": ("per model", "per layer"),
    "61_reserved": ("param layer", "param first"),
    "91_number_too_large": ("99999999999999999999", "8"),
    "A4_blocks": ("blocks = 7", "blocks = 8"),
    "bad_escape": ('"q\\x"', "q_proj"),
    "freeze_all": ("freeze A, B", "freeze A"),
    "n_target_where": (" where layer > 3\nshare a", "\nshare a where layer > 3"),
    "rank_divides_by_0": ("8 // (layer - 4)", "8"),
    "use_not_a_spec": ("rows.jsonl", "lora"),
    "via_bank_length": ("length = 300", "length = 256"),
    "via_negative": ("size = -1", "size = 256"),
    "via_two": ("via KE, SS", "via KE"),
}


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: path.stem)
def test_who_takes_every_answer_at_its_word_ends_with_a_spec_that_checks(path, monkeypatch):
    monkeypatch.chdir(path.parent.parent / "files")
    text = path.read_bytes().decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    if path.stem in CHOSEN:
        assert ends_right(text, path.name, "llama-7b") is None, "the answer alone is enough"
        assert CHOSEN[path.stem][0] in text
        text = text.replace(*CHOSEN[path.stem])
    assert ends_right(text, path.name, "llama-7b")
