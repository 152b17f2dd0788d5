"""The slots of a server in compact mode: the tensors of one plan, an adapter a row."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bishare_dsl.plan import Plan
from bishare_dsl.serve.vllm.batch import Group


class Bank:
    """The tensors of many adapters of one plan, each adapter's once.

    All adapters' values of one tensor lie side by side, ``(slots, rows, columns)``, so that a batch reads
    them in one go. Frozen tensors, which a seed draws, are the same for all adapters and stand here once.

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
        self.frozen: dict[str, Tensor] = {}
        self._rows: dict[str, Tensor] = {}
        users: dict[str, set[str]] = {}
        for term in plan.terms:
            for name in term.tensors.values():
                users.setdefault(name, set()).add(term.site)
        self._shared = {name for name, sites in users.items() if len(sites) > 1}
        self._copies: tuple[Group, dict[str, Tensor]] | None = None
        for tensor in plan.tensors:
            if tensor.trainable:
                shape = (slots, *tensor.shape)
                self._rows[tensor.name] = torch.zeros(shape, dtype=dtype, device=device)
            else:
                self.frozen[tensor.name] = frozen[tensor.name].to(device, dtype)

    @property
    def nbytes_each(self) -> int:
        """Bytes that an adapter takes."""
        return sum(rows[:1].nbytes for rows in self._rows.values())

    def pack(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what the bank holds of an adapter's tensors, in its type."""
        return {name: tensors[name].to(rows.dtype) for name, rows in self._rows.items()}

    def put(self, slot: int, packed: Mapping[str, Tensor] | None) -> None:
        """Write the tensors of an adapter, or zeros, into a slot."""
        self._copies = None
        for name, rows in self._rows.items():
            if packed is None:
                rows[slot].zero_()
            else:
                rows[slot].copy_(packed[name])

    def take(self, slot: int) -> dict[str, Tensor]:
        """Return a copy of what a slot holds, in host memory."""
        return {name: rows[slot].clone().cpu() for name, rows in self._rows.items()}

    def tensors(self, group: Group, names: Mapping[str, str]) -> dict[str, Tensor]:
        """Return the tensors of a group's adapters by role, each ``(R, rows, columns)``.

        Args:
            group: whose rows.
            names: of the tensors, by role.
        """
        key = tuple(names.values())
        if (views := group.views.get(key)) is None:
            views = {role: self._of(group, name) for role, name in names.items()}
            if isinstance(group.slots, slice):
                group.views[key] = views
        return views

    def _of(self, group: Group, name: str) -> Tensor:
        slots = group.slots
        if (frozen := self.frozen.get(name)) is not None:
            count = slots.stop - slots.start if isinstance(slots, slice) else len(slots)
            return frozen.expand(count, -1, -1)
        rows = self._rows[name]
        if isinstance(slots, slice):
            return rows[slots]
        if name not in self._shared:
            return rows.index_select(0, slots)
        # What several sites use is copied once for a batch.
        if self._copies is None or self._copies[0] is not group:
            self._copies = (group, {})
        copies = self._copies[1]
        if name not in copies:
            copies[name] = rows.index_select(0, slots)
        return copies[name]
