"""Alternating least squares: minimise over one block of tensors at a time, until the gain is small."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from bishare_dsl.convert.effective import check_linear, check_low_rank
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes.fit import NO_LEAST_SQUARES
from bishare_dsl.fit.family import Family
from bishare_dsl.fit.linear import solve
from bishare_dsl.fit.pairs import GivenPairs
from bishare_dsl.fit.problem import Problem, Squares
from bishare_dsl.fit.start import leading
from bishare_dsl.initial.values import check_drawn
from bishare_dsl.plan import Plan
from bishare_dsl.plan.file_bytes import selecting

Watch = Callable[[str], None]
"""Called after each sweep with a line on its relative error."""

_LEAST_GAIN = 1e-3
"""Stop after a sweep that reduces the squared error by less than this fraction, where it can be reduced."""

_LEAST_SWEEPS = 3
"""Sweeps before that rule applies, since the first sweeps may gain little from a bad start."""

_EXACT_ERROR = 1e-9
"""A relative error below float32 resolution."""


@dataclass(frozen=True)
class Fit:
    """What a fit gives: float32 tensors of each adapter by their names in the plan, and how far they are.

    ``errors`` are the relative errors of the adapters, ``|dW - fitted| / |dW|`` over all their modules.
    If not ``has_private``, nothing is private to an adapter, and all have the same tensors.
    """

    tensors: Mapping[str, Mapping[str, torch.Tensor]]
    errors: Mapping[str, float]
    error: float
    has_private: bool


def fit(
    plan: Plan,
    given: GivenPairs,
    *,
    seed: int = 0,
    sweeps: int = 30,
    watch: Watch = lambda line: None,
    library: Mapping[str, torch.Tensor] | None = None,
) -> Fit:
    """Find the tensors of a plan whose updates are nearest to the given updates.

    Minimises ``sum_i ||dW_i - sum_terms B^T A||^2`` over the sites of all adapters. No step increases it,
    so the result is never worse than the start. The fit is deterministic. The steps are in float64;
    the tensors that are returned, and their errors, are in float32.

    Args:
        plan: the plan of each adapter; tensors in `Plan.common` are fitted to all adapters together.
        given: the updates of the adapters.
        seed: for frozen tensors, and for initial values that `leading` does not set.
        sweeps: the maximum number of passes over all tensors.
        watch: called after each sweep.
        library: the values of a library's shared tensors, `Plan.common`, by name. They stay fixed, and only
            private tensors are fitted.

    Raises:
        AdapterError: an update of the plan is nonlinear (BS633), or a tensor is initialised from the base's
            weights (BS688), chooses among vectors or stands in two places (BS854).
    """
    check_linear(plan.terms, "fit the spec")
    check_low_rank(plan, "fit the spec")
    for name in sorted(selecting(plan)):
        raise AdapterError(NO_LEAST_SQUARES(tensor=name, why="updates are not linear in it"))
    for share, role in plan.references.values():
        why = "the spec has it in two places, and a fit solves for one place at a time"
        raise AdapterError(NO_LEAST_SQUARES(tensor=f"{share}.{role}", why=why))
    check_drawn(plan, "a fit")
    family = Family(plan, tuple(given.pairs))
    values = family.draw(seed)
    if library is None:
        problem = Problem(family, given, leading(family, given, values))
    else:
        values |= {family.variable("?", name): t.double() for name, t in library.items()}
        problem = Problem(family, given, values, frozenset(library))
    _descend(problem, sweeps, watch)
    # Report what is saved: float32 changes the products of skew factors.
    problem.values = {v: value.float() for v, value in problem.values.items()}
    squares = problem.squares()
    by_adapter = {name: Squares() for name in family.names}
    for (name, _), square in squares.items():
        by_adapter[name] += square
    return Fit(
        tensors={name: family.tensors(problem.values, name) for name in family.names},
        errors={name: square.relative for name, square in by_adapter.items()},
        error=sum(squares.values(), Squares()).relative,
        has_private=family.has_private,
    )


def _descend(problem: Problem, sweeps: int, watch: Watch) -> None:
    """Improve the values of a problem, a block at a time, until a sweep gains little."""
    fitted = [variable for variables in problem.blocks.values() for variable in variables]
    left = problem.distance(fitted)
    error = sum(problem.squares().values(), Squares()).relative
    for sweep in range(1, sweeps + 1):
        if error <= _EXACT_ERROR:
            return
        for block, variables in problem.blocks.items():
            steps = solve(problem.gradient(variables), partial(problem.curvature, block))
            for variable, step in steps.items():
                problem.values[variable] = problem.values[variable] + step
        before = left
        left = problem.distance(fitted)
        error = sum(problem.squares().values(), Squares()).relative
        watch(f"sweep {sweep}: relative error {100 * error:.3g}%")
        least = _LEAST_GAIN if sweep >= _LEAST_SWEEPS else 0.0
        if left > (1 - least) * before:
            return
