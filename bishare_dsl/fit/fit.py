"""Alternating least squares: minimise over one block of tensors at a time, until the gain is small."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from bishare_dsl.adapter.initial import check_drawn
from bishare_dsl.adapter.stored import Form, Rounded, dequantise, form_of, quantise, round_tensor
from bishare_dsl.export.effective import check_linear, check_low_rank
from bishare_dsl.fit.family import Family, Values
from bishare_dsl.fit.linear import solve
from bishare_dsl.fit.nonlinear import descend, nonlinear_blocks
from bishare_dsl.fit.pairs import GivenPairs
from bishare_dsl.fit.problem import Block, Problem
from bishare_dsl.fit.report import FitReport
from bishare_dsl.fit.start import leading
from bishare_dsl.plan import Plan
from bishare_dsl.plan.bits import BITS, quantisable, selecting

Watch = Callable[[int, float], None]
"""Called after each sweep with the number of sweeps and the relative error."""

_LEAST_GAIN = 1e-3
"""Stop after a sweep that reduces the squared error by less than this fraction, where it can be reduced."""

_LEAST_SWEEPS = 3
"""Sweeps before that rule applies, since the first sweeps may gain little from a bad start."""

_EXACT_ERROR = 1e-9
"""A relative error below float32 resolution."""

_LBFGS_STEPS = 20
"""L-BFGS steps per sweep."""


def fit(
    plan: Plan,
    given: GivenPairs,
    *,
    seed: int = 0,
    sweeps: int = 30,
    dtype: Rounded = None,
    watch: Watch = lambda sweep, error: None,
    library: Mapping[str, torch.Tensor] | None = None,
) -> tuple[Family, Values, FitReport]:
    """Find the tensors of a plan whose updates are nearest to the given updates.

    Minimises ``sum_i ||dW_i - sum_terms B^T A||^2`` over the sites of all adapters. No step increases it,
    so the result is never worse than the start. The fit is deterministic.

    Args:
        plan: the plan of each adapter; tensors in `Plan.common` are fitted to all adapters together.
        given: the updates of the adapters.
        seed: for frozen tensors, and for initial values that `leading` does not set.
        sweeps: the maximum number of passes over all tensors.
        dtype: the type in which the values will be saved. The report includes what that loses.
        watch: called after each sweep.
        library: the values of a library's shared tensors, `Plan.common`, by name. They stay fixed, and only
            private tensors are fitted.

    Raises:
        AdapterError: an update of the plan is nonlinear (BS633), or a tensor is initialised from the base's
            weights (BS688).
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
    start, part = (best := problem.error()), problem.fitted_square()
    values, done = dict(problem.values), 0
    while done < sweeps and best > _EXACT_ERROR:
        _sweep(problem, curved)
        done += 1
        error = problem.error()
        if not error < best:  # Only rounding errors remain.
            break
        before, part = part, problem.fitted_square()
        gain, best, values = 1 - part / (before or 1.0), error, dict(problem.values)
        watch(done, error)
        if gain < _LEAST_GAIN and done >= _LEAST_SWEEPS:
            break
    problem.values = _as_loaded(values, plan, form_of(dtype))
    return family, values, FitReport.of(problem.squares(), start, done)


def _as_loaded(values: Values, plan: Plan, form: Form | None) -> Values:
    """Return the values that an adapter has after it was saved in a type."""
    whole, exact = quantisable(plan) if form in BITS else set(), selecting(plan)
    loaded = dict(values)
    for variable, value in values.items():
        _, name = variable
        if name in whole and plan.tensor[name].trainable:
            loaded[variable] = dequantise(str(form), quantise(value, str(form)), tuple(value.shape))
        elif name not in exact and plan.tensor[name].trainable:
            loaded[variable] = round_tensor(value.float(), form)
    return {variable: value.double() for variable, value in loaded.items()}


def _sweep(problem: Problem, curved: Sequence[Block]) -> None:
    """Minimise over each linear block, and then move all other blocks together downhill."""
    for block, variables in problem.blocks.items():
        if block not in curved:
            _, gradient = problem.gradient(variables)
            steps = solve(gradient, partial(problem.curvature, block))
            problem.values |= {v: problem.values[v] + step for v, step in steps.items()}
    if loose := [variable for block in curved for variable in problem.blocks[block]]:
        problem.values |= descend(problem, loose, _LBFGS_STEPS)
