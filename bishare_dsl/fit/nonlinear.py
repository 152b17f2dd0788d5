"""Find tensors without a closed-form step, by trial, and optimise them by L-BFGS."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch

from bishare_dsl.fit.family import Values, Variable
from bishare_dsl.fit.problem import Block, Problem, inner
from bishare_dsl.transforms import Transform, Width, effective_pair

_ZERO_NORM = 1e-12
"""The relative squared norm up to which a float64 difference counts as zero."""

Shapes = tuple[tuple[str, tuple[int, int]], ...]


def nonlinear_blocks(problem: Problem) -> list[Block]:
    """Find the blocks in whose tensors the update is nonlinear, with other tensors fixed."""
    curved: dict[Block, None] = {}
    for chunk in problem.chunks:
        for term in chunk.terms:
            shapes = [(r, tuple(problem.values[v[0]].shape)) for r, v in term.variables.items()]
            for role in term.variables:
                if not _is_linear(term.transform, term.rank, term.width, role, tuple(shapes)):
                    curved[term.share, role] = None
    return [block for block in problem.blocks if block in curved]


def descend(problem: Problem, variables: Sequence[Variable], rounds: int) -> Values:
    """Optimise tensors together by L-BFGS with a line search, and return their values.

    Args:
        problem: a problem with initial values, which do not change.
        variables: the tensors.
        rounds: the maximum number of steps.
    """
    start = problem.values
    leaves = {v: start[v].clone().requires_grad_() for v in variables}
    # Relative to the given updates, the first steps have a suitable length.
    whole = problem.norm**2 or 1.0

    def closure() -> float:
        problem.values = start | {v: leaf.detach() for v, leaf in leaves.items()}
        value, gradient = problem.gradient(variables)
        for v, leaf in leaves.items():
            leaf.grad = gradient[v] / whole
        return value / whole

    optimizer = torch.optim.LBFGS(
        list(leaves.values()), max_iter=rounds, tolerance_change=0, line_search_fn="strong_wolfe"
    )
    try:
        optimizer.step(closure)
    finally:
        problem.values = start
    return {v: leaf.detach() for v, leaf in leaves.items()}


@cache
def _is_linear(transform: Transform, rank: int, width: Width, role: str, shapes: Shapes) -> bool:
    """Return whether ``U(0) - U(x) - U(y) + U(x + y)`` is zero; U maps one tensor to the update."""
    random = torch.Generator().manual_seed(0)
    drawn = {
        name: torch.randn(shape, dtype=torch.float64, generator=random) for name, shape in shapes
    }
    x = drawn[role]
    y = torch.randn(x.shape, dtype=torch.float64, generator=random)
    downs, ups = [], []
    for value, sign in ((0 * x, 1), (x, -1), (y, -1), (x + y, 1)):
        a, b = effective_pair(transform, drawn | {role: value}, rank, width, 1.0)
        downs.append(a[None])
        ups.append(sign * b[None])
    parts = zip(downs, ups, strict=True)
    size = sum(float(inner(part, part)) for part in parts)
    difference = torch.cat(downs, 1), torch.cat(ups, 1)
    return float(inner(difference, difference)) <= _ZERO_NORM * size
