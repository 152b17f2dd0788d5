"""The slots of a server: the tensors of one plan, those of all adapters in one memory."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bishare_dsl.plan import Plan
from bishare_dsl.serve.terms import Layout, Place, side_by_side

VIEWS = 20_000
"""How many views are kept for batches of as many adapters as those that were: a layer has some five."""


class Bank:
    """The tensors of many adapters of one plan, each adapter's once.

    On a GPU an adapter's numbers stand in one row. For a CPU they are cut into what it reads in one go, and
    such parts of all adapters stand side by side. Behind the slots is one that stays zero, for tokens that
    have no adapter. Behind all that are the frozen tensors, which a seed draws: they are the same for all
    adapters and stand there once.

    Args:
        plan: of the adapters.
        slots: how many adapters there is room for.
        frozen: the values of the plan's frozen tensors.
        dtype: of the bank.
        device: of the bank.

    Attributes:
        row: where each slot's numbers are; the last is that of no adapter.
        views: what others keep of views of the numbers.
        copies: what others keep that was made of the numbers, forgotten when these change.
    """

    def __init__(
        self,
        plan: Plan,
        slots: int,
        frozen: Mapping[str, Tensor],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ):
        self.layout, self.slots = Layout(plan), slots
        own = (slots + 1) * self.layout.numbers
        self.memory = torch.zeros(own + self.layout.common, dtype=dtype, device=device)
        self._cuts = [0, self.layout.numbers]
        if self.memory.device.type == "cpu":
            places = [place for place in self.layout.places.values() if not place.common]
            runs = [run for run, _ in side_by_side((place, None) for place in places)]
            self._cuts = [run.offset for run in runs] + [self.layout.numbers]
        self._parts = [
            self.memory[(slots + 1) * start : (slots + 1) * stop].view(slots + 1, stop - start)
            for start, stop in pairwise(self._cuts)
        ]
        self.row = np.arange(slots + 1)
        self.views: dict[tuple[object, int, int], Any] = {}
        self.copies: dict[tuple[object, int, int], Any] = {}
        self._brought = 0
        self._views: dict[Place, Tensor] = {}
        self.frozen: dict[str, Tensor] = {}
        for name, place in self.layout.places.items():
            if place.common:
                self.frozen[name] = frozen[name].to(device, dtype)
                self.view(place)[0].copy_(self.frozen[name])

    @property
    def nbytes_each(self) -> int:
        """Bytes that an adapter takes."""
        return self.layout.numbers * self.memory.element_size()

    def start_of(self, place: Place) -> tuple[int, int]:
        """Return where the first slot's tensor begins in `memory`, and the step to the next slot's."""
        if place.common:
            return (self.slots + 1) * self.layout.numbers + place.offset, 0
        number = bisect(self._cuts, place.offset) - 1
        start, stop = self._cuts[number : number + 2]
        return (self.slots + 1) * start + place.offset - start, stop - start

    def view(self, place: Place) -> Tensor:
        """Return a tensor of all slots, ``(slots + 1, rows, columns)``: the last is that of no adapter."""
        if (found := self._views.get(place)) is None:
            start, step = self.start_of(place)
            shape = self.slots + 1, place.rows, place.columns
            found = self.memory.as_strided(shape, (step, place.columns, 1), start)
            self._views[place] = found
        return found

    def pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return what the bank holds of an adapter, its numbers in a row, in host memory.

        Args:
            tensors: the plan's, by name.
        """
        made: dict[str, Tensor] = {}
        for source in self.layout.made:
            term = source.term
            values = {role: tensors[name].float() for role, name in term.tensors.items()}
            pair = source.transform.factors(values, term.rank, source.width)
            made |= {source.name(side): factor for side, factor in zip("AB", pair, strict=True)}
        own = [name for name, place in self.layout.places.items() if not place.common]
        held = [made[name] if name in made else tensors[name] for name in own]
        return torch.cat([tensor.flatten() for tensor in held]).to(self.memory.dtype)

    def put(self, slot: int, packed: Tensor) -> None:
        """Write an adapter into a slot."""
        pieces = packed.to(self.memory.device).split([part.shape[1] for part in self._parts])
        for part, piece in zip(self._parts, pieces, strict=True):
            part[self.row[slot]].copy_(piece)
        self.copies.clear()

    def take(self, slot: int) -> Tensor:
        """Return a copy of what a slot holds, in host memory."""
        return torch.cat([part[self.row[slot]] for part in self._parts]).cpu()

    def bring(self, slots: Sequence[int]) -> None:
        """Move what some slots hold, so that it stands in the first rows, in this order."""
        if len(slots) != self._brought:
            self._brought = len(slots)
            self.copies.clear()  # Lest there be some for each number of adapters.
        if len(self.views) > VIEWS:
            self.views.clear()
        if (self.row[slots] == np.arange(len(slots))).all():
            return
        row, slot_at = self.row.copy(), np.argsort(self.row)
        for place, slot in enumerate(slots):
            other, old = slot_at[place], row[slot]
            slot_at[[place, old]] = slot, other
            row[[slot, other]] = place, old
        moved = np.flatnonzero(row != self.row)
        target, source = (torch.from_numpy(found[moved]) for found in (row, self.row))
        for part in self._parts:
            part.index_copy_(0, target, part.index_select(0, source))
        self.row = row
        self.copies.clear()
