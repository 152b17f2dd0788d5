"""Specs that no text can say, built in Python."""

import pytest

from bishare_dsl import spec as m
from bishare_dsl.diagnostics import BishareError, SpecError
from bishare_dsl.language import parse_spec
from bishare_dsl.models.presets import preset
from bishare_dsl.plan import build_plan, check_spec


def spec(*, lets=(), params=(), **share):
    return m.Spec(
        name="s",
        params=params,
        lets=lets,
        target=m.Selection(include=("q_proj",)),
        shares=(m.Share(**{"name": "l", "per": "module", "rank": 4, **share}),),
    )


ARM = m.Arm(values=(1,), result=1)


@pytest.mark.parametrize(
    ("lets", "place"),
    [
        ([("a", "a")], ("lets", 0, "selection", "include", 0)),
        ([("a", "b"), ("b", "q_proj")], ("lets", 0, "selection", "include", 0)),
        ([("a", "b"), ("b", "a")], ("lets", 0, "selection", "include", 0)),
    ],
)
def test_a_let_used_before_it_is_declared(small, lets, place):
    made = spec(
        lets=tuple(m.Let(name=n, selection=m.Selection(include=(part,))) for n, part in lets),
        where=m.Selection(include=("a",)),
    )
    with pytest.raises(SpecError) as caught:
        build_plan(made, small)
    assert [(p.code, p.loc) for p in caught.value.problems] == [("BS126", place)]


@pytest.mark.parametrize(
    "share",
    [
        {"rank": m.Match(attribute="path", pattern="*")},
        {"scale": m.Match(attribute="kind", pattern="*")},
        {"alpha": m.Match(attribute="kind", pattern="*")},
        {"dropout": m.Match(attribute="parent", pattern="*")},
        {"via": m.Via(transform="KE", options={"size": m.Match(attribute="parent", pattern="*")})},
        {"rank": 10**400},
        {"scale": 10**400},
        {"dropout": 1e308},
        {"alpha": 5e-324},  # alpha / rank is zero
        {"rank": m.Cases(subject="kind", arms=())},
        {"rank": m.Cases(subject=m.Binary(op="+", left="kind", right=1), arms=(ARM,))},
        {"where": m.Selection(include=())},
        {"per": (3, m.Binary(op="/", left=1, right="layer"))},
    ],
)
def test_nonsense_is_a_problem_and_nothing_else(small, share):
    with pytest.raises(BishareError) as caught:
        build_plan(spec(**share), small)
    assert caught.value.problems


def test_lets_may_be_many(small):
    lets = [m.Let(name="l0", selection=m.Selection(include=("q_proj",)))]
    lets += [
        m.Let(name=f"l{i}", selection=m.Selection(include=(f"l{i - 1}",))) for i in range(1, 2000)
    ]
    made = spec(lets=tuple(lets), where=m.Selection(include=("l1999",)))
    assert len(build_plan(made, small)[0].terms) == 4


def test_check_needs_no_model():
    assert check_spec(spec(rank="r")) != []
    assert check_spec(spec(rank="r", params=(m.Param(name="r", value=2),))) == []
    assert check_spec(spec(rank="in")) == []  # the model will tell
    last = m.Member(value="layer", among=(m.Range(first=-1, last=2),))
    assert check_spec(spec(where=m.Selection(include=(last,)))) == []


def test_shares_that_meet_in_a_layer_are_found_once():
    """Of 31 shares, the last begins where all others end."""
    shares = "".join(f"share a{i} per layer rank 1 where layer in {i % 3}..5\n" for i in range(30))
    text = f"spec s\ntarget q_proj\n{shares}share b per layer rank 1 where layer in 5..7\n"
    _, problems = build_plan(parse_spec(text), preset("llama-7b"))
    meeting = [problem for problem in problems if problem.code == "BS228"]
    assert len(meeting) == 30
    assert {problem.loc for problem in meeting} == {("shares", 30, "where")}
