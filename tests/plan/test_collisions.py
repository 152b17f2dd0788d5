"""What a param, a let or a share is called changes nothing: a param never stands where truth is asked for."""

from __future__ import annotations

import pytest

from bishare_dsl.compiler import make_plan
from tests.support.collisions import differences
from tests.support.parts import quick


@pytest.mark.parametrize("start", quick(range(0, 400, 50), [0]))
def test_names_that_collide_mean_what_fresh_ones_do_at_every_site(start):
    assert [said for seed in range(start, start + 50) for said in differences(seed)] == []


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("param # = 4\ntarget q_proj\nshare s per module rank #\n", "q_proj"),
        ("param # = 4\ntarget k_proj\nshare s per module rank #\n", "k_proj"),
        ("param # = 4\ntarget q_proj, k_proj\nshare s per module rank (# if q_proj else 2)\n", "q_proj"),
        ("param # = 4\ntarget q_proj, down_proj\nshare s per module rank # where down_proj\n", "down_proj"),
        ("param # = 4\ntarget q_proj\ntrain norms\nshare s per module rank #\n", "norms"),
        ("param # = 4\ntarget q_proj\ntrain heads\nshare s per module rank #\n", "heads"),
        ("param # = 4\ntarget attention_inputs\nshare s per module rank #\n", "attention_inputs"),
        ("param # = 4\ntarget layer < #\nshare s per module rank #\n", "lm_head"),
        ("param # = 4\ntarget q_proj\nshare s per (not q_proj or layer > 1), in rank # via SS\n", "q_proj"),
        ("let # = kind == q_proj\ntarget #\nshare s per module rank 2\n", "lm_head"),
    ],
)  # fmt: skip
def test_a_plan_is_the_same_whatever_its_params_and_lets_are_called(text, name):
    """So folders that another version saved, whose spec has such names, are not refused (BS661)."""
    one, other = (
        make_plan(f"spec s\n{text.replace('#', used)}", "llama-7b") for used in (name, "fresh")
    )
    assert one.plan.digest == other.plan.digest
    assert [t.parameter for t in one.plan.trained] == [t.parameter for t in other.plan.trained]
    codes = [[p.code for p in made.problems if p.code != "BS322"] for made in (one, other)]
    assert codes[0] == codes[1]


def test_a_param_whose_name_is_only_a_kind_s_is_never_used():
    made = make_plan(
        "spec s\nparam q_proj = 4\ntarget q_proj\nshare s per module rank 2\n", "llama-7b"
    )
    assert [problem.code for problem in made.problems] == ["BS213"]
