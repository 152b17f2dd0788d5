"""The bits of an adapter's file: which tensors may be rounded or quantised, and how large the file is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set

from bishare_dsl.plan.plan import Plan, Tensor
from bishare_dsl.transforms import load_transform

GROUP = 64
"""Consecutive numbers of a quantised tensor, row by row, with one scale of 16 bits."""

BITS = {"int8": 8, "int4": 4}
"""The types to which tensors are quantised."""

BITS_EACH = {form: bits + 16 / GROUP for form, bits in BITS.items()}
"""The bits of a quantised number, with its part of a scale, by type."""

SCALES = "scales"
"""The part of a quantised tensor with its scales."""


def selecting(plan: Plan) -> set[str]:
    """Return tensors that select other values (`Transform.exact`), so that files keep their bits."""
    one = {(term.share, term.rank): term for term in plan.terms}
    exact = {key: load_transform(t.transform, t.options).exact for key, t in one.items()}
    named = ((t.tensors, role) for t in plan.terms for role in exact[t.share, t.rank])
    return {tensors[role] for tensors, role in named if role in tensors}


def quantisable(plan: Plan) -> set[str]:
    """Return the tensors that are quantised: those of terms with at least a group of numbers.

    Parameters trained in full and small tensors are rounded to bfloat16 instead. Tensors that select other
    values keep their bits.
    """
    used = {name for term in plan.terms for name in term.tensors.values()}
    large = {tensor.name for tensor in plan.tensors if tensor.size >= GROUP}
    return (used & large) - selecting(plan)


def offset_of(tensor: Tensor) -> float:
    """Return what is subtracted before a tensor is quantised: its initial value if it is constant."""
    return {"constant": tensor.amount, "ones": 1.0}.get(tensor.init, 0.0)


def file_bytes(plan: Plan, names: Set[str] | None = None) -> dict[str, int]:
    """Return the bytes of an adapter's tensors in a file, by type.

    Args:
        plan: of the adapter.
        names: the tensors to count; by default all that a file has.
    """
    if names is None:
        names = {tensor.name for tensor in plan.tensors if tensor.trainable or not tensor.drawn}
    exact, whole = selecting(plan), quantisable(plan)
    counts = dict.fromkeys(("float32", "bfloat16", *BITS), 0)
    alike = Counter((plan.tensor[name].size, name in exact, name in whole) for name in names)
    for (size, keeps, quantised), count in alike.items():
        rounded = (4 if keeps else 2) * size
        counts["float32"] += count * 4 * size
        counts["bfloat16"] += count * rounded
        for form, bits in BITS.items():
            small = -(-bits * size // 8) + 2 * -(-size // GROUP)
            counts[form] += count * (small if quantised else rounded)
    return counts
