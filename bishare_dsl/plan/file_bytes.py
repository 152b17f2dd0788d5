"""The bytes of an adapter's file: which tensors may be rounded, and how large the file is."""

from __future__ import annotations

from collections.abc import Set

from bishare_dsl.plan.plan import Plan
from bishare_dsl.transforms import load_transform


def selecting(plan: Plan) -> set[str]:
    """Return tensors that select other values (`Transform.exact`), so that files keep their bits."""
    names: set[str] = set()
    exact_roles: dict[tuple[str, int], Set[str]] = {}
    for term in plan.terms:
        options = (term.share, term.rank)  # Terms with both equal have equal options.
        if options not in exact_roles:
            exact_roles[options] = {*load_transform(term.transform, term.options).exact}
        names.update(term.tensors[role] for role in exact_roles[options] if role in term.tensors)
    return names


def file_bytes(plan: Plan, names: Set[str] | None = None) -> dict[str, int]:
    """Return the bytes of an adapter's tensors in a file, by type.

    Args:
        plan: of the adapter.
        names: the tensors to count; by default all that a file has.
    """
    if names is None:
        names = {tensor.name for tensor in plan.tensors if tensor.trainable or not tensor.drawn}
    exact = selecting(plan)
    whole = sum(plan.tensor[name].size for name in names)
    unrounded = sum(plan.tensor[name].size for name in names & exact)
    return {"float32": 4 * whole, "bfloat16": 2 * (whole + unrounded)}
