"""Dense references of transforms, for comparison in `check_transform`.

Write one for your own transform, from the paper's equation and not from its code:

    >>> @reference("Half")
    ... def half(term: TermValues) -> Factors:
    ...     return 0.5 * term["B"].T, term["A"]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor


@dataclass(frozen=True)
class TermValues:
    """A term at a site with the values of its tensors as stored, ``values[role]``.

    Storage is rank-major: ``values["B"]`` is ``(r, ...)``, the transpose of the paper's B. So are the
    gates ``G_iu`` and ``G_ou`` and the kernel ``K_B``.
    """

    tensors: Mapping[str, Tensor]
    options: Mapping[str, Any]
    rank: int
    d_in: int
    d_out: int

    def __getitem__(self, role: str) -> Tensor:
        return self.tensors[role]


Factors = tuple[Tensor, Tensor]
"""``B (d_out, rows)`` and ``A (rows, d_in)``, in this order: the update is ``dW = B A``."""

_FunctionT = TypeVar("_FunctionT", bound=Callable[..., Any])

REFERENCES: dict[str, Callable[..., Any]] = {}
"""Maps the name of a transform to a function from a term's values to its `Factors`, without scale and
gains. For a nonlinear transform, it maps the values and ``x (..., d_in)`` to the update ``(..., d_out)``."""


def reference(transform: str) -> Callable[[_FunctionT], _FunctionT]:
    """Register the decorated function as the reference of a transform."""

    def register(function: _FunctionT) -> _FunctionT:
        REFERENCES[transform] = function
        return function

    return register
