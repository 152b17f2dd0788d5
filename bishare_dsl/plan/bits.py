"""The bits of an adapter's file: which tensors may be rounded or quantised, and how large the file is."""

from __future__ import annotations

from collections.abc import Mapping, Set

from bishare_dsl.plan.plan import Plan
from bishare_dsl.transforms import GAIN_OUT, GAIN_RANK, load_transform

GROUP = 64
"""Consecutive numbers of a quantised tensor, row by row, with one scale of 16 bits."""

BITS = {"int8": 8, "int4": 4}
"""The types to which tensors are quantised."""

BITS_EACH = {form: bits + 16 / GROUP for form, bits in BITS.items()}
"""The bits of a quantised number, with its part of a scale, by type."""

SCALES = "scales"
"""The part of a quantised tensor with its scales."""

QUANTISED: Mapping[tuple[str, ...], str] = {(form, SCALES): form for form in BITS}
"""The type of a quantised tensor, by the labels of its parts."""


def selecting(plan: Plan) -> set[str]:
    """Return tensors that select other values (`Transform.exact`), so that files keep their bits."""
    return {
        name
        for term in plan.terms
        for role in load_transform(term.transform, term.options).exact
        if (name := term.tensors.get(role)) is not None
    }


def quantisable(plan: Plan) -> set[str]:
    """Return the tensors that are quantised: factors and kernels of at least a group of numbers.

    Gains, magnitudes, parameters trained in full, and tensors that select other values stay.
    """
    used = {
        name
        for term in plan.terms
        for role, name in term.tensors.items()
        if not term.is_magnitude and role not in (GAIN_RANK, GAIN_OUT)
    }
    large = {tensor.name for tensor in plan.tensors if tensor.size >= GROUP}
    return (used & large) - selecting(plan)


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
    for tensor in (plan.tensor[name] for name in names):
        counts["float32"] += 4 * tensor.size
        counts["bfloat16"] += (4 if tensor.name in exact else 2) * tensor.size
        for form, bits in BITS.items():
            scales = 2 * -(-tensor.size // GROUP)
            small = -(-bits * tensor.size // 8) + scales
            counts[form] += small if tensor.name in whole else 4 * tensor.size
    return counts
