"""Advice on wrong specs is followed literally, on a model: the problem is gone, and no fewer modules share."""

from pathlib import Path

import pytest

from bishare_dsl.compiler import make_plan
from bishare_dsl.diagnostics import BishareError
from bishare_dsl.language.read import survey
from bishare_dsl.models.presets import preset
from bishare_dsl.plan.sharing import Sharing, asked, sharing
from tests.messages.wrong_specs import draw

INPUTS = sorted((Path(__file__).parent / "inputs").glob("*.share"))


def outcome(text, name, model):
    """Return the problems of a text, with advice, and its plan."""
    try:
        resolved = make_plan_of(text, name, model)
        return resolved.problems, resolved.plan
    except BishareError as error:
        return error.problems, None


def make_plan_of(text, name, model):
    from bishare_dsl.compiler import advised

    found = survey(text, name)
    if found.spec is None:
        from bishare_dsl.diagnostics import SpecError

        raise advised(SpecError(found.problems, found.where), None, preset(model))
    return make_plan(found.spec, preset(model), where=found.where)


def wanted(text, name, model):
    """Return what the keys of a text ask to share."""
    spec = survey(text, name).spec
    return Sharing(0) if spec is None else asked(spec, preset(model))


def written(text, edits):
    for edit in sorted(edits, key=lambda edit: -edit.span.start):
        text = text[: edit.span.start] + edit.text + text[edit.span.end :]
    return text


def check_advice(text, name, model):
    problems, _ = outcome(text, name, model)
    before = wanted(text, name, model)
    for problem in problems:
        if not problem.edits:
            continue
        after, plan = outcome(written(text, problem.edits), name, model)
        key = problem.code, problem.message
        keys = [[(one.code, one.message) for one in some] for some in (problems, after)]
        assert keys[1].count(key) < keys[0].count(key), problem
        if plan is not None:
            assert sharing(plan).fraction >= before.fraction, problem


@pytest.mark.parametrize(
    "wrong", [*zip(range(60), draw(11), strict=False)], ids=lambda w: w[1].slip
)
def test_advice_on_a_drawn_mistake_can_be_followed(wrong):
    check_advice(wrong[1].text, "mine.share", wrong[1].model)


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: path.stem)
def test_advice_on_a_collected_mistake_can_be_followed(path, monkeypatch):
    monkeypatch.chdir(path.parent.parent / "files")
    text = path.read_bytes().decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    check_advice(text, path.name, "llama-7b")
