import math

import pytest

from bishare_dsl.spec import (
    And,
    Binary,
    Call,
    Compare,
    Match,
    Member,
    Not,
    Or,
    Range,
    Ref,
    Selection,
)
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
        (Ref(ref="r"), 8),
        (Ref(ref="word"), "centre"),
        (Ref(ref="leading"), "leading"),
        (Ref(ref="top"), True),
        (Binary(op="+", left="r", right=1), 9),
        (Binary(op="-", left=1, right="r"), -7),
        (Binary(op="*", left="r", right=0.5), 4.0),
        (Binary(op="/", left="r", right=3), 8 / 3),
        (Binary(op="//", left="r", right=3), 2),
        (Binary(op="%", left=Binary(op="-", left=0, right=1), right=3), 2),
        (Call(function="sqrt", arguments=("r",)), math.sqrt(8)),
        (Call(function="abs", arguments=(-2.5,)), 2.5),
        (Call(function="floor", arguments=(-2.5,)), -3),
        (Call(function="max", arguments=("r", 3, 9)), 9),
        (Call(function="min", arguments=("r", 3)), 3),
        (Member(value="layer", among=(Range(first=0, last=3),)), True),
        (Binary(op="-", left="layer", right=Binary(op="*", left=2, right=2)), -1),
    ],
)
def test_value(expression, value):
    found = SCOPE.value(expression)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("predicate", "truth"),
    [
        (Ref(ref="up_proj"), True),
        (Ref(ref="q_proj"), False),
        (Ref(ref="top"), True),
        (Match(attribute="path", pattern="*.mlp.*"), True),
        (Match(attribute="path", pattern="model.layers.?.mlp.up_proj"), True),
        (Match(attribute="path", pattern="mlp"), False),
        (Match(attribute="parent", pattern="mlp"), True),
        (Match(attribute="kind", pattern="[u]p_proj"), False),
        (And(all_of=("top", "up_proj")), True),
        (And(all_of=("top", "low")), False),
        (Or(any_of=("top", "low")), True),
        (Or(any_of=()), False),
        (Not(negated="low"), True),
        (Member(value="layer", among=(0, Range(first=2, last=3))), True),
        (Member(value="layer", among=(-1,)), True),
        (Member(value="layer", among=(Range(first=-2, last=-1),)), True),
        (Member(value="layer", among=(Range(first=-4, last=-2),)), False),
        (Member(value="kind", among=("q_proj", "up_proj")), True),
        (Member(value="kind", among=(Range(first=0, last=9),)), False),
        (Compare(op="==", left="layer", right=-1), True),
        (Compare(op="<", left=-2, right="layer"), True),
        (Compare(op="<=", left="layer", right=2), False),
        (Compare(op="!=", left="kind", right="q_proj"), True),
        (Compare(op="==", left="kind", right=3), False),
        (Compare(op=">", left="out", right="in"), True),
        # Only beside `layer` itself does a negative number count from the end.
        (Compare(op="==", left=Binary(op="+", left="layer", right=0), right=-1), False),
    ],
)
def test_truth(predicate, truth):
    assert SCOPE.holds(predicate) is truth


def test_a_selection_is_any_of_the_first_and_none_of_the_second():
    assert SCOPE.holds(Selection(include=("low", "top")))
    assert not SCOPE.holds(Selection(include=("top",), exclude=("low", "up_proj")))
    assert not SCOPE.holds(Selection(include=()))


@pytest.mark.parametrize(
    ("expression", "code", "loc"),
    [
        (Ref(ref="rr"), "BS201", ("x",)),
        (Binary(op="+", left=1, right="rr"), "BS201", ("x", "right")),
        (Ref(ref="word"), "BS210", ("x",)),
        (Ref(ref="kind"), "BS210", ("x",)),
        (Not(negated="low"), "BS210", ("x",)),
        (Binary(op="/", left=1, right=0), "BS210", ("x",)),
        (Binary(op="%", left=1, right=0), "BS210", ("x",)),
        (Binary(op="*", left=2**40, right=2**40), "BS210", ("x",)),
        (Binary(op="+", left=10**400, right=1), "BS210", ("x", "left")),
        (10**400, "BS210", ("x",)),
        (1e300, "BS210", ("x",)),
        (1e-300, "BS210", ("x",)),  # 0 in float32: a term of this scale would do nothing.
        (Call(function="sqrt", arguments=(-1,)), "BS210", ("x",)),
        (
            Call(function="sqrt", arguments=(Binary(op="/", left=1, right=0),)),
            "BS210",
            ("x", "arguments", 0),
        ),
    ],
)
def test_no_number(expression, code, loc):
    with pytest.raises(EvaluationError) as caught:
        SCOPE.number(expression, ("x",))
    assert (caught.value.problem.code, caught.value.problem.loc) == (code, loc)


@pytest.mark.parametrize(
    ("predicate", "loc"),
    [
        (4, ("x",)),
        (Binary(op="+", left=1, right=1), ("x",)),
        (And(all_of=("top", 4)), ("x", "all_of", 1)),
        (Or(any_of=("low", 4)), ("x", "any_of", 1)),
        (Not(negated=4), ("x", "negated")),
        (Compare(op="<", left="kind", right="word"), ("x",)),
        (Member(value="layer", among=(Range(first="word", last=3),)), ("x", "among", 0, "first")),
    ],
)
def test_no_truth(predicate, loc):
    with pytest.raises(EvaluationError) as caught:
        SCOPE.holds(predicate, ("x",))
    assert caught.value.problem.loc == loc


@pytest.mark.parametrize("attribute", ["path", "kind", "parent"])
def test_a_pattern_needs_a_module(attribute):
    with pytest.raises(EvaluationError, match="not known in this place"):
        Scope({"r": 2}).value(Match(attribute=attribute, pattern="*"))
