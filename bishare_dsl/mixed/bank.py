"""The tensors of adapters of one plan that train together, as one tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from bishare_dsl.transforms import stacked


class TrainingBank:
    """The tensors of adapters of one plan. Each adapter's parameters are views of it.

    Args:
        members: the parameters of each adapter, by their names in the plan; those that train are float32.
        shared: the names of tensors of which there is one for all: it gets the gradients of all adapters.

    Attributes:
        own: ``(adapters, values)``, what each adapter has for itself and trains.
        common: ``(1, values)``, what all share and train.
        own_columns, common_columns: where in a row each tensor stands, by its name.
    """

    def __init__(
        self, members: Sequence[Mapping[str, nn.Parameter]], shared: frozenset[str] = frozenset()
    ) -> None:
        first = members[0]
        trained = [name for name, tensor in first.items() if tensor.requires_grad]
        self.shapes = {name: tuple(first[name].shape) for name in trained}
        apart = [name for name in trained if name not in shared]
        together = [name for name in trained if name in shared]
        self.own, self.own_columns = _slab(members, apart)
        self.common, self.common_columns = _slab(members[:1], together)
        self.frozen = {
            name: _one_or_all([member[name] for member in members])
            for name in first
            if name not in self.shapes
        }
        self._members = members
        self.attach()

    def attach(self) -> None:
        """Let the adapters' parameters be views, again where somebody has given them other memory."""
        for row, member in enumerate(self._members):
            for name, tensor in member.items():
                tensor.data = self._row(name, row)
                tensor.requires_grad_(False)

    def _row(self, name: str, row: int) -> Tensor:
        if (frozen := self.frozen.get(name)) is not None:
            return frozen[row] if frozen.dim() == 3 else frozen
        shape = self.shapes[name]
        if name in self.own_columns:
            return self.own.detach()[row, self.own_columns[name]].view(shape)
        return self.common.detach()[0, self.common_columns[name]].view(shape)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What trains: `own`, then `common`, but for what is empty."""
        return [slab for slab in (self.own, self.common) if slab.numel()]

    def views(self) -> dict[str, Tensor]:
        """Return the tensors by name: ``(adapters, *shape)`` of each its own, ``shape`` of what all share.

        Gradients of them all reach the bank in one piece.
        """
        found = {n: t.view(-1, *self.shapes[n]) for n, t in _parts(self.own, self.own_columns)}
        common = {n: t.view(self.shapes[n]) for n, t in _parts(self.common, self.common_columns)}
        return found | common | self.frozen


def _slab(
    members: Sequence[Mapping[str, Tensor]], names: Sequence[str]
) -> tuple[nn.Parameter, dict[str, slice]]:
    """Copy tensors into one, a row for each adapter, and say where in a row each stands."""
    ends = [*accumulate((prod(members[0][name].shape) for name in names), initial=0)]
    columns = {n: slice(*ends[i : i + 2]) for i, n in enumerate(names)}
    like: Any = next(iter(members[0].values()))
    slab = torch.empty(len(members), ends[-1], dtype=like.dtype, device=like.device)
    for row, member in enumerate(members):
        for name, place in columns.items():
            slab[row, place] = member[name].detach().flatten()
    return nn.Parameter(slab), columns


def _parts(slab: Tensor, columns: Mapping[str, slice]) -> list[tuple[str, Tensor]]:
    if not columns:
        return []
    sizes = [place.stop - place.start for place in columns.values()]
    return [*zip(columns, slab.split(sizes, 1), strict=True)]


def _one_or_all(tensors: Sequence[Tensor]) -> Tensor:
    """Return frozen tensors side by side, or the first where all have its values."""
    values = [tensor.detach() for tensor in tensors]
    same = all(torch.equal(value, values[0]) for value in values[1:])
    return values[0] if same else stacked(values)
