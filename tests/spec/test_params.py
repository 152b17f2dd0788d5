"""Params computed from params."""

import pytest

from bishare_dsl.diagnostics import SpecError
from bishare_dsl.language import parse_spec, spec_text
from bishare_dsl.models import preset
from bishare_dsl.plan import build_plan
from bishare_dsl.spec import Binary, param_values

TEXT = """spec s
param r = 8
param window = centre
param half = r // 2
param rest = max(r - half, 1)
param same = window
target q_proj
share a per module rank half
share b per model rank rest via SS(slice = same)
"""


def test_they_follow_what_they_are_computed_from():
    spec = parse_spec(TEXT)
    assert spec.params[2].value == Binary(op="//", left="r", right=2)
    assert spec.values == {"r": 8, "window": "centre", "half": 4, "rest": 4, "same": "centre"}
    changed = spec.with_params({"r": 3, "window": "leading"})
    assert changed.values == {"r": 3, "window": "leading", "half": 1, "rest": 2, "same": "leading"}
    assert spec.with_params({"half": 5}).values["rest"] == 3
    assert parse_spec(spec_text(changed)) == changed
    plan, problems = build_plan(changed, preset("llama-7b"))
    assert problems == ()
    assert plan.params == changed.values
    assert {(term.rank, term.options.get("slice")) for term in plan.terms} == {
        (1, None),
        (2, "leading"),
    }


def test_one_that_cannot_be_worked_out_is_told_once():
    spec = parse_spec(TEXT.replace("r // 2", "r // window"))
    values, problems = param_values(spec)
    assert (values["half"], [p.code for p in problems]) == (1, ["BS210"])
    with pytest.raises(SpecError) as caught:
        build_plan(spec, preset("llama-7b"))
    assert [(p.code, p.loc) for p in caught.value.problems] == [
        ("BS210", ("params", 2, "value", "right"))
    ]


def test_a_used_file_brings_what_a_param_is_computed_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.share").write_text(
        "spec base param r = 8 param word = r param k = 2 * word param unused = k "
        "target q_proj share a per model rank k"
    )
    spec = parse_spec('spec s use "base.share" replace param r = 3')
    assert spec.values == {"r": 3, "word": 3, "k": 6}
