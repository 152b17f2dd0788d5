"""Conjugate gradients against a solver of dense systems."""

import torch

from bishare_dsl.fit.linear import solve


def test_it_solves_separate_systems_at_once_in_as_many_rounds_as_numbers():
    torch.manual_seed(0)
    rows = {("", name): torch.randn(30, size).double() for name, size in (("x", 6), ("y", 9))}
    wanted = {v: torch.randn(30).double() for v in rows}
    steps = solve(
        {v: -2 * m.t() @ wanted[v] for v, m in rows.items()},
        lambda way: {v: 2 * rows[v].t() @ (rows[v] @ d) for v, d in way.items()},
        most=9,
    )
    for v, m in rows.items():
        want = torch.linalg.lstsq(m, wanted[v]).solution
        torch.testing.assert_close(steps[v], want, rtol=1e-4, atol=1e-5)


def test_a_tensor_on_which_nothing_depends_is_left():
    steps = solve({("", "x"): torch.ones(3)}, lambda way: {v: 0 * d for v, d in way.items()})
    assert not steps["", "x"].any()
