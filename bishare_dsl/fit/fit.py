"""Alternating least squares: each block of tensors in turn to where it fits best, while that helps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from bishare_dsl.adapter.initial import check_drawn
from bishare_dsl.export.effective import check_linear, check_low_rank
from bishare_dsl.fit.family import Family, Values
from bishare_dsl.fit.linear import solve
from bishare_dsl.fit.nonlinear import descend, nonlinear_blocks
from bishare_dsl.fit.pairs import GivenPairs
from bishare_dsl.fit.problem import Block, Problem
from bishare_dsl.fit.report import FitReport
from bishare_dsl.fit.start import leading
from bishare_dsl.plan import Plan

Watch = Callable[[int, float], None]
"""Told after each sweep how many there were, and the relative error then."""

_ENOUGH = 1e-3
"""A sweep that takes less than this part off the square of the error is the last one."""

_LEAST = 3
"""Sweeps before one may be the last for that: from a bad start the first ones bring little."""

_EXACT = 1e-9
"""A relative error that float32 would not show."""

_ROUNDS = 20
"""Steps of L-BFGS in a sweep."""


def fit(
    plan: Plan,
    given: GivenPairs,
    *,
    seed: int = 0,
    sweeps: int = 30,
    dtype: torch.dtype = torch.float32,
    watch: Watch = lambda sweep, error: None,
    library: Mapping[str, torch.Tensor] | None = None,
) -> tuple[Family, Values, FitReport]:
    """Find the tensors of a plan whose updates come nearest to those that are given.

    ``sum_i ||dW_i - sum_terms B^T A||^2`` over the sites of all adapters falls with each block of tensors
    that is solved for: what comes out is never worse than the start. The same input gives the same output.

    Args:
        plan: of each adapter; tensors that are `Plan.common` are fitted to all adapters together.
        given: the adapters.
        seed: draws what is frozen, and the initial values that `leading` leaves.
        sweeps: how often all tensors are gone through, at most.
        dtype: what values are rounded to.
        watch: called after each sweep.
        library: the values of what a library shares, `Plan.common`, by name. They stay, and only what the
            adapters have of their own is fitted.

    Raises:
        AdapterError: an update of the plan is not a matrix (BS633), or a tensor starts as the base's weights
            say (BS688).
    """
    check_linear(plan.terms, "fit the spec")
    check_low_rank(plan, "fit the spec")
    check_drawn(plan, "a fit")
    family = Family(plan, given.names)
    values = family.draw(seed)
    if library is None:
        problem = Problem(family, given, leading(family, given, values))
    else:
        values |= {family.variable("?", name): t.double() for name, t in library.items()}
        problem = Problem(family, given, values, frozenset(library))
    curved = nonlinear_blocks(problem)
    start = best = problem.error()
    values, done = dict(problem.values), 0
    while done < sweeps and best > _EXACT:
        _sweep(problem, curved)
        done += 1
        error = problem.error()
        if not error < best:  # Rounding is all that is left.
            break
        gain, best, values = 1 - (error / best) ** 2, error, dict(problem.values)
        watch(done, error)
        if gain < _ENOUGH and done >= _LEAST:
            break
    problem.values = _rounded(values, plan, dtype)
    return family, problem.values, FitReport.of(problem.squares(), start, done)


def _rounded(values: Values, plan: Plan, dtype: torch.dtype) -> Values:
    return {
        v: value.to(dtype).double() if plan.tensor[v[1]].trainable else value
        for v, value in values.items()
    }


def _sweep(problem: Problem, curved: Sequence[Block]) -> None:
    """Take each block that is linear to where it fits best, and the others, together, some way downhill."""
    for block, variables in problem.blocks.items():
        if block not in curved:
            _, gradient = problem.gradient(variables)
            steps = solve(gradient, partial(problem.curvature, block))
            problem.values |= {v: problem.values[v] + step for v, step in steps.items()}
    if loose := [variable for block in curved for variable in problem.blocks[block]]:
        problem.values |= descend(problem, loose, _ROUNDS)
