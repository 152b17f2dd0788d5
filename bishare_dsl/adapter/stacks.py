"""Stacks: tensors of one share, role and shape, which a file stores together as one tensor.

A model has hundreds of equal modules, so names of single tensors would take more bytes than small adapters.
A state dict in memory and folders of format 2 have each tensor alone: a stack of one, without the first axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from bishare_dsl.plan import Plan, Tensor
from bishare_dsl.plan.bits import BITS, GROUP, SCALES
from bishare_dsl.plan.names import attribute

if TYPE_CHECKING:
    from bishare_dsl.adapter.config import Entry

_FLOATS, _OF_SCALES = ("F64", "F32", "BF16", "F16"), ("F32", "BF16", "F16")

Wanted = Mapping[str, tuple[tuple[int, ...], tuple[str, ...]]]
"""The shapes and the types that tensors of a file may have, by the last component of their keys."""


class Stack(NamedTuple):
    """Tensors of one shape that are stored together.

    ``key`` is the last component of its key in the file. ``form`` is `BITS`' name of a quantised stack, whose
    numbers and scales are stored as ``key:form`` and ``key:scales``; None for a whole one.
    """

    key: str
    tensors: tuple[Tensor, ...]
    form: str | None
    alone: bool

    @property
    def parts(self) -> dict[str, str]:
        """The keys of its parts by label; a whole stack has one part, ``key``."""
        labels = (self.form, SCALES) if self.form else ()
        return {label: f"{self.key}:{label}" for label in labels} or {"key": self.key}

    def wanted(self) -> Wanted:
        """Return the shapes and types of its parts in the file."""
        shape = self.tensors[0].shape
        size = prod(shape)
        shapes = {
            "key": (shape, _FLOATS),
            "int8": (shape, ("I8",)),
            "int4": ((-(-size // 2),), ("U8",)),
            SCALES: ((-(-size // GROUP),), _OF_SCALES),
        }
        count = () if self.alone else (len(self.tensors),)
        return {k: ((*count, *shapes[p][0]), shapes[p][1]) for p, k in self.parts.items()}


def groups_of(plan: Plan, *, alone: bool = False) -> dict[str, list[Tensor]]:
    """Return the tensors that are stacked together, by the key of the stack, in the order of the plan."""
    groups: dict[str, list[Tensor]] = {}
    for tensor in plan.tensors:
        role, shape = tensor.name.rpartition(".")[2], "x".join(map(str, tensor.shape))
        name = tensor.name if alone else f"{tensor.share}.{role}.{shape}"
        groups.setdefault(attribute(name), []).append(tensor)
    return groups


def stacks_of(plan: Plan, entries: Mapping[str, Entry], *, alone: bool = False) -> Iterator[Stack]:
    """Return the stacks of a file, without tensors that the seed or the base gives."""
    for key, tensors in groups_of(plan, alone=alone).items():
        ways: dict[str, list[Tensor]] = {}
        for tensor in tensors:
            entry = entries.get(tensor.name)
            ways.setdefault("" if entry is None else entry.way, []).append(tensor)
        for way in ("", *BITS):
            if way in ways:
                yield Stack(key, tuple(ways[way]), way or None, alone)


def common_keys(plan: Plan, *, alone: bool = False) -> set[str]:
    """Return the keys of the stacks that the adapters of a library have in common."""
    groups = groups_of(plan, alone=alone).items()
    return {key for key, tensors in groups if tensors[0].name in plan.common}
