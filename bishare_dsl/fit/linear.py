"""An alternating least squares step by matrix-free conjugate gradients.

A block is a share and a role. Each site uses one tensor of a block, so its tensors are independent of each
other. Each has separate steps, and all are computed at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from bishare_dsl.fit.family import Values, Variable

_SOLVED_RESIDUAL = 1e-12
"""The relative squared residual at which a system counts as solved."""


def solve(
    gradient: Mapping[Variable, Tensor], curvature: Callable[[Values], Values], most: int = 12
) -> Values:
    """Return the steps to the minimum of a quadratic function that is separable in its tensors.

    Args:
        gradient: the gradient of each tensor at the starting point.
        curvature: returns the Hessian times a direction.
        most: the maximum number of rounds; each decreases the function.
    """
    steps = {v: g.new_zeros(g.shape) for v, g in gradient.items()}
    rest = {v: -g for v, g in gradient.items()}
    direction = dict(rest)
    square = {v: _dot(r, r) for v, r in rest.items()}
    goal = {v: s * _SOLVED_RESIDUAL for v, s in square.items()}
    for _ in range(most):
        open_ = [v for v in direction if square[v] > goal[v]]
        if not open_:
            break
        curved = curvature({v: direction[v] for v in open_})
        for v in open_:
            curvature_along = _dot(direction[v], curved[v])
            if curvature_along <= 0:  # The function does not depend on it.
                square[v] = 0.0
                continue
            length = square[v] / curvature_along
            steps[v] += length * direction[v]
            rest[v] = rest[v] - length * curved[v]
            before = square[v]
            square[v] = _dot(rest[v], rest[v])
            direction[v] = rest[v] + (square[v] / before) * direction[v]
    return steps


def _dot(left: Tensor, right: Tensor) -> float:
    return float((left * right).sum())
