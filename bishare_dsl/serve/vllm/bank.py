"""The slots of a server in compact mode: the tensors of one plan, an adapter a row."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from bishare_dsl.plan import Plan
from bishare_dsl.serve.vllm.batch import Group

Packed = dict[str, Tensor]
"""The tensors of one adapter as they lie in a bank: for each of its parts, a row."""


class Bank:
    """The tensors of many adapters of one plan, each adapter's once.

    What a layer of the model has to itself lies side by side, a row an adapter, so that a batch takes what
    a layer needs with one copy, or none. What several layers share is a part of its own. Frozen tensors,
    which a seed draws, are the same for all adapters and stand here once.

    Args:
        plan: of the adapters.
        slots: how many adapters there is room for.
        frozen: the values of the plan's frozen tensors.
        dtype: of the bank.
        device: of the bank.
    """

    def __init__(
        self,
        plan: Plan,
        slots: int,
        frozen: Mapping[str, Tensor],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ):
        layer = {site.path: str(site.layer) for site in plan.sites}
        users: dict[str, set[str]] = {tensor.name: set() for tensor in plan.tensors}
        for term in plan.terms:
            for name in term.tensors.values():
                users[name].add(layer[term.site])
        self.dtype, self.device = dtype, device
        self.frozen = {
            tensor.name: frozen[tensor.name].to(device, dtype).unsqueeze(0)
            for tensor in plan.tensors
            if not tensor.trainable
        }
        self._places: dict[str, tuple[str, int, tuple[int, int]]] = {}
        widths: dict[str, int] = {}
        for tensor in plan.tensors:
            if tensor.trainable:
                part = users[tensor.name].pop() if len(users[tensor.name]) == 1 else "shared"
                self._places[tensor.name] = (part, widths.get(part, 0), tensor.shape)
                widths[part] = widths.get(part, 0) + prod(tensor.shape)
        self._parts = {
            part: torch.zeros(slots, width, dtype=dtype, device=device)
            for part, width in widths.items()
        }
        self._gathered: tuple[Group, dict[str, Tensor]] | None = None

    @property
    def nbytes_each(self) -> int:
        """Bytes that an adapter takes."""
        return sum(part[:1].nbytes for part in self._parts.values())

    def pack(self, tensors: Mapping[str, Tensor]) -> Packed:
        """The tensors of one adapter, as they lie in the bank."""
        rows = {
            part: torch.empty(bank.shape[1], dtype=self.dtype) for part, bank in self._parts.items()
        }
        for name, (part, start, shape) in self._places.items():
            rows[part][start : start + prod(shape)] = tensors[name].flatten()
        return rows

    def put(self, slot: int, packed: Packed | None) -> None:
        """Give a slot the tensors of an adapter, or zeros."""
        self._gathered = None
        for part, bank in self._parts.items():
            if packed is None:
                bank[slot].zero_()
            else:
                bank[slot].copy_(packed[part])

    def take(self, slot: int) -> Packed:
        """A copy of what a slot holds, in host memory."""
        return {part: bank[slot].clone().cpu() for part, bank in self._parts.items()}

    def tensors(self, group: Group, names: Mapping[str, str]) -> dict[str, Tensor]:
        """The tensors of a group's adapters by role, each ``(R, rows, columns)``.

        Args:
            group: whose rows.
            names: of the tensors, by role.
        """
        key = tuple(names.values())
        if (views := group.views.get(key)) is None:
            views = {role: self._tensor(group, name) for role, name in names.items()}
            if isinstance(group.slots, slice):
                group.views[key] = views
        return views

    def _tensor(self, group: Group, name: str) -> Tensor:
        if (frozen := self.frozen.get(name)) is not None:
            rows = group.slots
            count = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
            return frozen.expand(count, -1, -1)
        part, start, shape = self._places[name]
        row = self._part(group, part)
        return row[:, start : start + prod(shape)].unflatten(1, shape)

    def _part(self, group: Group, part: str) -> Tensor:
        bank = self._parts[part]
        if isinstance(group.slots, slice):
            return bank[group.slots]
        # A copy is kept while the layer asks for more of it; that of what layers share, for the batch.
        if self._gathered is None or self._gathered[0] is not group:
            self._gathered = (group, {})
        copies = self._gathered[1]
        if part not in copies:
            shared = copies.get("shared")
            copies.clear()
            if shared is not None:
                copies["shared"] = shared
            copies[part] = bank.index_select(0, group.slots)
        return copies[part]
