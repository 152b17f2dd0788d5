"""How a file stores a plan's tensors: in stacks, as `docs/format.md` specifies.

A stack has the tensors of one share, role and shape. A model has hundreds of equal modules, so names of
single tensors would take more bytes than small adapters. A state dict in memory and folders of 0.4 have
each tensor alone: a stack of one, without the first axis.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from bishare_dsl.plan import Plan, Tensor
from bishare_dsl.plan.names import attribute

FLOATS = ("F64", "F32", "BF16", "F16")
"""The types that tensors of a file may have, as safetensors calls them."""


@dataclass(frozen=True)
class Stack:
    """Tensors of one shape that are stored together.

    Attributes:
        key: the last component of its key in the file.
        tensors: its rows.
        alone: whether it is one tensor without the first axis.
    """

    key: str
    tensors: tuple[Tensor, ...]
    alone: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape in the file."""
        shape = self.tensors[0].shape
        return shape if self.alone else (len(self.tensors), *shape)


def groups_of(plan: Plan, *, alone: bool = False) -> dict[str, list[Tensor]]:
    """Return the tensors that are stacked together, by the key of the stack, in the order of the plan."""
    if alone:
        return {attribute(tensor.name): [tensor] for tensor in plan.tensors}
    groups: dict[str, list[Tensor]] = {}
    for tensor in plan.tensors:
        rows, columns = tensor.shape
        key = attribute(f"{tensor.share}.{tensor.role}.{rows}x{columns}")
        groups.setdefault(key, []).append(tensor)
    return groups


def stacks_of(plan: Plan, omitted: Collection[str], *, alone: bool = False) -> Iterator[Stack]:
    """Return the stacks of a file.

    Args:
        plan: of the adapter.
        omitted: the names of tensors that the seed or the base gives.
        alone: whether each tensor is stored alone.
    """
    for key, tensors in groups_of(plan, alone=alone).items():
        stored = tuple(tensor for tensor in tensors if tensor.name not in omitted)
        if stored:
            yield Stack(key, stored, alone)


def common_keys(plan: Plan, *, alone: bool = False) -> set[str]:
    """Return the keys of the stacks that the adapters of a library have in common."""
    groups = groups_of(plan, alone=alone).items()
    return {key for key, tensors in groups if tensors[0].name in plan.common}
