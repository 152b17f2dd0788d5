"""Conjugate gradients against a solver of dense systems."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from bishare_dsl.compiler import make_plan
from bishare_dsl.fit.family import Family
from bishare_dsl.fit.linear import solve
from bishare_dsl.fit.pairs import read_pairs
from bishare_dsl.fit.problem import Problem
from bishare_dsl.models import Architecture


def test_it_solves_separate_systems_at_once() -> None:
    torch.manual_seed(0)
    rows = {("", name): torch.randn(30, size).double() for name, size in (("x", 6), ("y", 9))}
    wanted = {v: torch.randn(30).double() for v in rows}
    steps = solve(
        {v: -2 * m.t() @ wanted[v] for v, m in rows.items()},
        lambda way: {v: 2 * rows[v].t() @ (rows[v] @ d) for v, d in way.items()},
        most=50,
    )
    for v, m in rows.items():
        want = torch.linalg.lstsq(m, wanted[v]).solution
        torch.testing.assert_close(steps[v], want, rtol=1e-4, atol=1e-5)


def test_a_tensor_on_which_nothing_depends_is_left() -> None:
    steps = solve({("", "x"): torch.ones(3)}, lambda way: {v: 0 * d for v, d in way.items()})
    assert not steps["", "x"].any()


def test_behind_a_step_the_gradient_of_its_block_is_zero(trained: Any, base: Architecture) -> None:
    plan = make_plan("bishare_ss", base).plan
    family = Family(plan, ("a",))
    problem = Problem(family, read_pairs([("a", trained("lora", r=3))]), family.draw(0))
    block = ("intra", "B")
    variables = problem.blocks[block]
    before = problem.gradient(variables)
    steps = solve(before, partial(problem.curvature, block), most=50)
    problem.values |= {v: problem.values[v] + step for v, step in steps.items()}
    after = problem.gradient(variables)
    for v in variables:
        assert after[v].norm() < 1e-5 * before[v].norm()
