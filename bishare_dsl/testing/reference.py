"""What every transform must compute, as dense matrices straight from the paper.

An oracle, so it shares no code with `bishare_dsl.transforms`: it names matrices as the paper does, in the
paper's orientation (A is ``(r, d_in)``, B is ``(d_out, r)``), forms every product in full, and is slow.

A transform of your own gets a reference of its own:

    >>> @reference("Half")
    ... def half(term: TermValues) -> torch.Tensor:
    ...     return 0.5 * term["B"].T @ term["A"]
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bishare_dsl.plan import Plan, Term

ModelT = TypeVar("ModelT", bound=nn.Module)


@dataclass(frozen=True)
class TermValues:
    """A term at a site with the values of its tensors, which ``values[role]`` gives as they are stored.

    Storage is rank-major: ``values["B"]`` is ``(r, ...)``, the paper's B transposed, and so are the
    gates ``G_iu`` and ``G_ou`` and the kernel ``K_B``.
    """

    tensors: Mapping[str, Tensor]
    options: Mapping[str, Any]
    rank: int
    d_in: int
    d_out: int

    def __getitem__(self, role: str) -> Tensor:
        return self.tensors[role]


Reference = Callable[[TermValues], Tensor]
_ReferenceT = TypeVar("_ReferenceT", bound=Reference)

REFERENCES: dict[str, Reference] = {}
"""By the name of the transform: from a term's values to its update ``dW (d_out, d_in)``, without scale."""


def reference(transform: str) -> Callable[[_ReferenceT], _ReferenceT]:
    """Register a function as the reference of the transform of that name; a decorator."""

    def register(function: _ReferenceT) -> _ReferenceT:
        REFERENCES[transform] = function
        return function

    return register


@reference("Identity")
def identity(term: TermValues) -> Tensor:
    """``B A``: Equation 1, LoRA."""
    a, b = term["A"], term["B"].T
    return b @ a


@reference("SS")
def slice_sharing(term: TermValues) -> Tensor:
    """``B_s[window, :] A_s[:, window]``: Equation 3, Algorithm 1; the windows of Table 4."""
    a_s, b_s = term["A"], term["B"].T
    windows = []
    for whole, width in ((a_s.shape[1], term.d_in), (b_s.shape[0], term.d_out)):
        first = {
            "leading": 0,
            "trailing": whole - width,
            "centre": (whole - width) // 2,
        }[term.options["slice"]]
        windows.append(list(range(first, first + width)))
    columns, rows = windows
    return b_s[rows, :] @ a_s[:, columns]


@reference("GT")
def gate_transformation(term: TermValues) -> Tensor:
    """``(G_ou G_od)(B_s A_s)(G_iu G_id)``: Equation 4, Algorithm 2."""
    a_s, b_s = term["A"], term["B"].T
    w_s = b_s @ a_s  # (n, m)
    g_i = term["G_iu"].T @ term["G_id"]  # (m, d_in)
    g_o = term["G_ou"].T @ term["G_od"]  # (d_out, n)
    return g_o @ w_s @ g_i


@reference("KE")
def kronecker_extension(term: TermValues) -> Tensor:
    """``(K_B (x) B_s)(K_A (x) A_s)``: Equation 6, Algorithm 3; row by row for Table 8.

    Where ``size`` does not divide a width, what is beyond the width is cut off.
    """
    a_s, b_s = term["A"], term["B"].T
    k_a, k_b = term["K_A"], term["K_B"].T
    if term.options["rowwise"]:
        ranks = range(term.rank)
        a = torch.cat([_kronecker(k_a[[i], :], a_s[[i], :]) for i in ranks], dim=0)
        b = torch.cat([_kronecker(k_b[:, [i]], b_s[:, [i]]) for i in ranks], dim=1)
    else:
        a, b = _kronecker(k_a, a_s), _kronecker(k_b, b_s)
    return b[: term.d_out, :] @ a[:, : term.d_in]


def _kronecker(x: Tensor, y: Tensor) -> Tensor:
    """``x (x) y``: Equation 5, block by block."""
    return torch.cat([torch.cat([entry * y for entry in row], dim=1) for row in x], dim=0)


def dense_delta(term: Term, tensors: Mapping[str, Tensor], d_in: int, d_out: int) -> Tensor:
    """A term's update of its site's weight, scale included: ``scale * dW (d_out, d_in)``.

    Args:
        term: of a plan.
        tensors: the adapter's tensors, by their names in the plan; gradients flow to them.
        d_in: width of the site's input.
        d_out: width of its output.

    Raises:
        KeyError: the transform has no reference; `reference` registers one.
    """
    values = {role: tensors[name] for role, name in term.tensors.items()}
    return term.scale * REFERENCES[term.transform](
        TermValues(values, term.options, term.rank, d_in, d_out)
    )


def reference_model(model: ModelT, plan: Plan, tensors: Mapping[str, Tensor]) -> ModelT:
    """A copy of a base model whose weights are ``W + sum of dW``, dense.

    Args:
        model: the base, not adapted; it is not changed. Sites are `nn.Linear`, or GPT-2's ``Conv1D``.
        plan: of the adapter.
        tensors: the adapter's tensors by name. The copy uses these very tensors, each wherever the
            plan says, so that gradients of its loss flow to them. Nothing else trains. Dropout is
            left out.
    """
    dense = copy.deepcopy(model).requires_grad_(False)
    for site in plan.sites:
        if terms := plan.terms_of[site.path]:
            module = dense.get_submodule(site.path)
            # Conv1D keeps its weight (d_in, d_out).
            conv = not isinstance(module, nn.Linear)
            update = _Update(terms, tensors, site.d_in, site.d_out, transposed=conv)
            # Unsafe only skips a trial run, which would be one more evaluation of the update.
            parametrize.register_parametrization(module, "weight", update, unsafe=True)
    return dense


class _Update(nn.Module):
    """Adds the updates of some terms to a weight."""

    def __init__(
        self,
        terms: tuple[Term, ...],
        tensors: Mapping[str, Tensor],
        d_in: int,
        d_out: int,
        *,
        transposed: bool,
    ):
        super().__init__()
        self.terms, self.d_in, self.d_out, self.transposed = terms, d_in, d_out, transposed
        # In a list, so that the module does not register what is not its own.
        self.shared = [tensors]

    def forward(self, weight: Tensor) -> Tensor:
        for term in self.terms:
            update = dense_delta(term, self.shared[0], self.d_in, self.d_out)
            weight = weight + (update.T if self.transposed else update).to(weight.dtype)
        return weight
