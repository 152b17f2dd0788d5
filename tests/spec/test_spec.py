import json
import math

import pytest
from pydantic import ValidationError

from bishare_dsl.diagnostics import SpecError
from bishare_dsl.language import parse_spec, read_file
from bishare_dsl.resources import shipped_specs
from bishare_dsl.spec import Param, Ref, Selection, Settings, Share, Spec, Via

SHARE = Share(name="local", per="module", rank="r")
SPEC = Spec(
    name="lora",
    params=(Param(name="r", value=4),),
    target=Selection(include=("q_proj", "v_proj")),
    shares=(SHARE,),
)


def test_python_builds_what_text_says():
    text = "spec lora param r = 4 target q_proj, v_proj share local per module rank r"
    assert parse_spec(text) == SPEC


def test_a_key_may_be_given_in_words():
    assert Share(name="s", per="model", rank=1).per == ()
    assert Share(name="s", per="layer", rank=1).per == (Ref(ref="layer"),)
    assert Share(name="s", per=("layer", "kind"), rank=1).per == (Ref(ref="layer"), Ref(ref="kind"))


@pytest.mark.parametrize("name", shipped_specs())
def test_json_both_ways(name):
    spec, _ = read_file(shipped_specs()[name])
    assert Spec.model_validate_json(spec.model_dump_json()) == spec
    assert Spec.model_validate(spec.model_dump()) == spec


def test_schema_is_closed():
    schema = Spec.model_json_schema()
    assert schema["additionalProperties"] is False
    models = [d for name, d in schema["$defs"].items() if name not in ("Via", "Expression")]
    assert {model["additionalProperties"] for model in models} == {False}
    json.dumps(schema)


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1},
        {"shares": [{"name": "s", "per": [], "rank": True}]},
        {"shares": [{"name": "s", "per": [], "rank": math.nan}]},
        {"shares": [{"name": "s", "per": [], "rank": 1, "ranks": 1}]},
        {"params": [{"name": "x", "value": math.inf}]},
        {"params": [{"name": "x", "value": True}]},
    ],
)
def test_what_is_no_spec_is_refused(change):
    with pytest.raises(ValidationError):
        Spec.model_validate({**SPEC.model_dump(), **change})


def test_a_spec_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        SPEC.name = "other"


def test_params_are_replaced_in_a_new_spec():
    other = SPEC.with_params({"r": 16})
    assert other.params == (Param(name="r", value=16),)
    assert SPEC.params == (Param(name="r", value=4),)
    assert other.shares == SPEC.shares
    assert SPEC.with_params({}) == SPEC


@pytest.mark.parametrize("value", [math.inf, math.nan, True, None, [1]])
def test_a_param_is_a_finite_number_or_a_word(value):
    with pytest.raises(SpecError) as caught:
        SPEC.with_params({"r": value})
    assert [(p.code, p.loc) for p in caught.value.problems] == [("BS211", ("params", 0, "value"))]


@pytest.mark.parametrize(
    ("share", "settings"),
    [
        ({}, (8, 2, 0.1)),
        ({"dropout": 0}, (8, 2, 0)),
        ({"scale": 1}, (8, 1, 0.1)),
        ({"alpha": 4}, (4, 2, 0.1)),
        ({"alpha": 4, "scale": 1}, (4, 1, 0.1)),
    ],
)
def test_a_share_s_settings_and_the_defaults(share, settings):
    spec = SPEC.model_copy(
        update={"defaults": Settings(alpha=8, scale=2, dropout=0.1, init={"A": "normal"})}
    )
    found = spec.settings(Share(name="s", per="module", rank=1, init={"B": "ones"}, **share))
    assert (found.alpha, found.scale, found.dropout) == settings
    assert found.init == {"A": Ref(ref="normal"), "B": Ref(ref="ones")}


def test_options_may_be_words_and_numbers():
    via = Via(transform="KE", options={"size": "size", "rowwise": "true", "shared_rank": 2})
    assert via.options == {"size": Ref(ref="size"), "rowwise": Ref(ref="true"), "shared_rank": 2}
