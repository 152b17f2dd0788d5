import math

import pytest

from bishare_dsl import spec as m
from bishare_dsl.spec.evaluate import EvaluationError, Scope

SITE = {
    "path": "model.layers.3.mlp.up_proj",
    "layer": 3,
    "kind": "up_proj",
    "parent": "mlp",
    "in": 4,
    "out": 6,
}
SCOPE = Scope(SITE | {"r": 8, "word": "centre"}, lets={"top": True, "low": False}, layers=4)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        (4, 4),
        (0.5, 0.5),
        (m.Ref(ref="r"), 8),
        (m.Ref(ref="word"), "centre"),
        (m.Ref(ref="leading"), "leading"),
        (m.Ref(ref="top"), True),
        (m.Binary(op="+", left="r", right=1), 9),
        (m.Binary(op="-", left=1, right="r"), -7),
        (m.Binary(op="*", left="r", right=0.5), 4.0),
        (m.Binary(op="/", left="r", right=3), 8 / 3),
        (m.Binary(op="//", left="r", right=3), 2),
        (m.Binary(op="%", left=m.Binary(op="-", left=0, right=1), right=3), 2),
        (m.Binary(op="**", left=2, right=3), 8),
        (m.Binary(op="**", left="r", right=-1), 0.125),
        (m.Binary(op="**", left=-2, right=3), -8),
        (m.Call(function="sqrt", arguments=("r",)), math.sqrt(8)),
        (m.Call(function="abs", arguments=(-2.5,)), 2.5),
        (m.Call(function="floor", arguments=(-2.5,)), -3),
        (m.Call(function="max", arguments=("r", 3, 9)), 9),
        (m.Call(function="min", arguments=("r", 3)), 3),
        (m.Member(value="layer", among=(m.Range(first=0, last=3),)), True),
        (m.Binary(op="-", left="layer", right=m.Binary(op="*", left=2, right=2)), -1),
    ],
)
def test_value(expression, value):
    found = SCOPE.value(expression)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("predicate", "truth"),
    [
        (m.Ref(ref="up_proj"), True),
        (m.Ref(ref="q_proj"), False),
        (m.Ref(ref="top"), True),
        (m.Match(attribute="path", pattern="*.mlp.*"), True),
        (m.Match(attribute="path", pattern="model.layers.?.mlp.up_proj"), True),
        (m.Match(attribute="path", pattern="mlp"), False),
        (m.Match(attribute="parent", pattern="mlp"), True),
        (m.Match(attribute="kind", pattern="[u]p_proj"), False),
        (m.And(all_of=("top", "up_proj")), True),
        (m.And(all_of=("top", "low")), False),
        (m.Or(any_of=("top", "low")), True),
        (m.Or(any_of=()), False),
        (m.Not(negated="low"), True),
        (m.Member(value="layer", among=(0, m.Range(first=2, last=3))), True),
        (m.Member(value="layer", among=(-1,)), True),
        (m.Member(value="layer", among=(m.Range(first=-2, last=-1),)), True),
        (m.Member(value="layer", among=(m.Range(first=-4, last=-2),)), False),
        (m.Member(value="kind", among=("q_proj", "up_proj")), True),
        (m.Member(value="kind", among=(m.Range(first=0, last=9),)), False),
        (m.Compare(op="==", left="layer", right=-1), True),
        (m.Compare(op="<", left=-2, right="layer"), True),
        (m.Compare(op="<=", left="layer", right=2), False),
        (m.Compare(op="!=", left="kind", right="q_proj"), True),
        (m.Compare(op="==", left="kind", right=3), False),
        (m.Compare(op=">", left="out", right="in"), True),
        # Only beside `layer` itself does a negative number count from the end.
        (m.Compare(op="==", left=m.Binary(op="+", left="layer", right=0), right=-1), False),
    ],
)
def test_truth(predicate, truth):
    assert SCOPE.holds(predicate) is truth


def test_a_selection_is_any_of_the_first_and_none_of_the_second():
    assert SCOPE.holds(m.Selection(include=("low", "top")))
    assert not SCOPE.holds(m.Selection(include=("top",), exclude=("low", "up_proj")))
    assert not SCOPE.holds(m.Selection(include=()))


@pytest.mark.parametrize(
    ("left", "right", "why"),
    [
        (2, 54, "out of range"),
        (10, 10**15, "out of range"),  # Refused before it is computed.
        (-10, 10**15 + 1, "out of range"),
        (1e200, 2, "out of range"),
        (2, -127, "out of range"),
        (0.5, 10**15, "out of range"),
        (0, -1, "divides by zero"),
        (-8, 0.5, "no root"),
    ],
)
def test_a_power_without_a_value_is_refused(left, right, why):
    with pytest.raises(EvaluationError, match=why):
        SCOPE.value(m.Binary(op="**", left=left, right=right))


def cases(subject, arms, otherwise=None):
    arms = tuple(m.Arm(values=values, result=result) for values, result in arms)
    return m.Cases(subject=subject, arms=arms, otherwise=otherwise)


def test_a_match_takes_the_first_arm_with_its_value():
    layers = cases("layer", [((0,), 1), ((m.Range(first=2, last=3),), "r"), ((-1,), 9)], 5)
    assert SCOPE.value(layers) == 8
    assert SCOPE.number(m.Binary(op="+", left=layers, right=1)) == 9
    assert SCOPE.number(cases("kind", [(("q_proj",), 1)], "top")) == 1  # a let, as a number
    assert SCOPE.value(cases("kind", [(("q_proj",), 1)], "word")) == "centre"
    assert SCOPE.holds(cases("kind", [(("up_proj",), m.Compare(op="<", left="layer", right=4))]))


def test_a_match_without_its_value_names_the_module():
    with pytest.raises(EvaluationError) as caught:
        SCOPE.value(m.Binary(op="+", left=1, right=cases("kind", [(("q_proj",), 1)])), ("x",))
    assert caught.value.problem.code == "BS307"
    assert caught.value.problem.loc == ("x", "right")
    assert SITE["path"] in caught.value.problem.message
