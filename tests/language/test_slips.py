"""Texts that cannot be read, and the answers that a user sees, in `slips`.

`known` has mistakes of which the advice gives a spec, `causes` those of which the cause alone is known,
`not_understood` those about which nothing is guessed, and `by_place` those whose advice depends on the place.
"""

from pathlib import Path

import pytest

from bishare_dsl.diagnostics.words import peft_advice
from tests.support.documents import answered, check_document, check_edits

FOLDER = Path(__file__).parent / "slips"
HEAD = "spec s\ntarget q_proj, v_proj\n"


@pytest.mark.parametrize("name", ["known", "causes", "not_understood", "by_place"])
def test_a_slip_is_answered_as_written(name):
    for text, problems in check_document(FOLDER / f"{name}.txt"):
        assert any(problem.severity == "error" for problem in problems), text
        assert bool(problems[0].edits) or name != "known", text
        assert problems[0].edits == () or name not in ("causes", "not_understood"), text
        check_edits(text, problems)


def test_a_factor_is_not_quoted_as_the_name_of_a_share():
    text = f"{HEAD}share A per kind rank 16\nshare B per module rank 16\nmagnitude\n"
    problems, _ = answered(text)
    assert [problem.code for problem in problems] == ["BS111", "BS111", "BS123"]
    assert problems[-1].message == "`magnitude` does not say `per`"
    assert not any('"' in (problem.help or "") for problem in problems)


@pytest.mark.parametrize(
    "word", ["alpha_pattern", "fan_in_fan_out", "layers_pattern", "use_rslora"]
)
def test_a_word_of_peft_gets_the_answer_of_its_table(word):
    problems, _ = answered(f"{HEAD}{word} true\nshare a per module rank 4\n")
    assert problems[0].help == peft_advice(word, "true")
