"""SiteSets are worth what each of them is worth by itself."""

import pytest

from bishare_dsl.language import parse_spec
from bishare_dsl.spec import Match
from bishare_dsl.spec.evaluate import EvaluationError, Scope
from bishare_dsl.spec.site_sets import SiteSets

LETS = "let even = layer % 2 == 0\nlet some = even and up, down except layer > 1\n"
CONDITIONS = [
    *("up", "even", "some", "none", 'kind "d*"', "not up", "not 6 / layer > 3", "layer == -1"),
    *("up and layer in 1..", "layer != none and 6 / layer > 2", "layer > 0 or 6 / layer > 2"),
    # What stands before `and` has a value first.
    "6 / layer > 2 and layer > 0",
    *("up, layer == 0 except even", "6 / layer > 2, up", "up if even else some", "r > 3 and up"),
    *("layer in {0, 2..}", "some == 1", "layers > 2", 'kind "*" except 6 / layer > 2'),
]


def scopes():
    """Two towers, of two layers and of three, and a head, each with params of the same values."""
    found = []
    for layers in (2, 3):
        for layer in range(layers):
            for kind in ("up", "down"):
                values = {"layer": layer, "kind": kind, "layers": layers, "r": 4}
                found.append(Scope(values, {"ups": kind == "up"}, layers))
    head = {"layer": "none", "kind": "down", "layers": 3, "r": 4}
    return [*found, Scope(head, {"ups": False, "up": True}, 3, by_name=True)]


def asked(condition):
    spec = parse_spec(f"spec s\nparam r = 4\n{LETS}target {condition}\nshare s per module rank r")
    return SiteSets(scopes(), spec.lets), spec.target


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_condition_is_true_where_it_holds(condition):
    places, target = asked(condition)
    true, false = places.partition(target)
    for i, scope in enumerate(places.scopes):
        try:
            assert (i in true, i in false) == (holds := scope.holds(target), not holds)
        except EvaluationError:
            assert i not in true | false


def test_the_first_place_without_a_value_is_an_error():
    places, target = asked("6 / layer > 2")
    with pytest.raises(EvaluationError, match="in layer 0") as error:
        places.select(target, ("target",))
    assert error.value.problem.loc == ("target", "include", 0, "left")
    assert places.select(target, among={2, 3}) == {2, 3}


def test_what_reads_the_same_is_asked_once(monkeypatch):
    places, target = asked("layer == 1, up except layer == 0")
    asked_of = []
    holds = Scope.holds
    monkeypatch.setattr(
        Scope, "holds", lambda self, part, loc=(): asked_of.append(part) or holds(self, part, loc)
    )
    for _ in range(2):
        places.partition(target)
    # Of 11 places: three layers in one tower, two in the other, none; two kinds, and one with a name more.
    assert [asked_of.count(part) for part in (*target.include, *target.exclude)] == [6, 5, 6]


def test_groups_come_in_order_of_their_places():
    places, _ = asked("up")
    assert places.groups(Match(attribute="kind", pattern="*"), "condition", {1, 2, 4, 10}) == [
        [1],
        [2],
        [4],
        [10],
    ]
    assert places.groups(4, "number") == [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9], [10]]
    assert SiteSets([], ()).groups(4, "number") == []
