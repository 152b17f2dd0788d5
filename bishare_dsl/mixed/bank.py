"""The tensors of adapters that train together, as one tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bishare_dsl.transforms import stacked

Shapes = Mapping[str, tuple[int, ...]]


class Kind(NamedTuple):
    """Adapters whose tensors have the same names and shapes.

    Attributes:
        rows: theirs in the bank.
        own, common: the shapes of what each trains for itself, and of what all train, by name.
        frozen: what does not train, of each side by side or of all.
    """

    rows: list[int]
    own: Shapes
    common: Shapes
    frozen: Mapping[str, Tensor]


class TrainingBank:
    """The tensors of several adapters. Each adapter's parameters are views of it.

    Args:
        members: the parameters of each adapter, by their names in the plan; those that train are float32.
        shared: the names of tensors of which there is one for all: it gets the gradients of all adapters.

    Attributes:
        own: ``(adapters, values)``, what each adapter has for itself and trains. Of adapters of several
            plans, the smaller ones have zeros at the end, which no one reads.
        common: ``(1, values)``, what all share and train.
        kinds: the adapters by the shapes of their tensors; what is shared has one kind.
    """

    def __init__(
        self, members: Sequence[Mapping[str, nn.Parameter]], shared: frozenset[str] = frozenset()
    ) -> None:
        alike: dict[Any, list[int]] = {}
        for row, member in enumerate(members):
            key = tuple((name, t.shape, t.requires_grad) for name, t in member.items())
            alike.setdefault(key, []).append(row)
        self.kinds = [_kind([*members], rows, shared) for rows in alike.values()]
        self.own = _slab(members, [self.kind_of(row).own for row in range(len(members))])
        self.common = _slab(members[:1], [self.kinds[0].common])
        self._members = members
        self.attach()

    def kind_of(self, row: int) -> Kind:
        """Return the kind of an adapter."""
        return next(kind for kind in self.kinds if row in kind.rows)

    def attach(self) -> None:
        """Let the adapters' parameters be views, again where somebody has given them other memory."""
        for row, member in enumerate(self._members):
            kind = self.kind_of(row)
            found = _parts(self.own.detach()[row], kind.own)
            found |= _parts(self.common.detach()[0], kind.common)
            for name, frozen in kind.frozen.items():
                found[name] = frozen[kind.rows.index(row)] if frozen.dim() == 3 else frozen
            for name, tensor in member.items():
                tensor.data = found[name]
                tensor.requires_grad_(False)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What trains: `own`, then `common`, but for what is empty."""
        return [slab for slab in (self.own, self.common) if slab.numel()]

    def views(self, kind: Kind) -> dict[str, Tensor]:
        """Return tensors by name: ``(adapters, *shape)`` of each its own, ``shape`` of what all share.

        Gradients of them all reach the bank in one piece.
        """
        own: Tensor = self.own
        if len(self.kinds) > 1:
            own = own.index_select(0, torch.tensor(kind.rows, device=own.device))
        return {
            **_parts(own, kind.own),
            **_parts(self.common.squeeze(0), kind.common),
            **kind.frozen,
        }


def columns(shapes: Shapes) -> dict[str, slice]:
    """Return where in a row each tensor stands, by its name."""
    ends = [*accumulate(map(prod, shapes.values()), initial=0)]
    return {name: slice(*ends[i : i + 2]) for i, name in enumerate(shapes)}


def _kind(members: Sequence[Mapping[str, Tensor]], rows: list[int], shared: frozenset[str]) -> Kind:
    first = members[rows[0]]

    def shapes(names: Iterable[str]) -> Shapes:
        return {name: tuple(first[name].shape) for name in names}

    trained = [name for name, tensor in first.items() if tensor.requires_grad]
    frozen = {
        name: _one_or_all([members[row][name] for row in rows])
        for name in first
        if name not in trained
    }
    own, common = (
        shapes(name for name in trained if (name in shared) == together)
        for together in (False, True)
    )
    return Kind(rows, own, common, frozen)


def _slab(members: Sequence[Mapping[str, Tensor]], shapes: Sequence[Shapes]) -> nn.Parameter:
    """Copy tensors into one, a row for each adapter."""
    widest = max(sum(map(prod, of_row.values())) for of_row in shapes)
    like: Any = next(iter(members[0].values()))
    slab = torch.zeros(len(members), widest, dtype=like.dtype, device=like.device)
    for row, member in enumerate(members):
        for name, place in columns(shapes[row]).items():
            slab[row, place] = member[name].detach().flatten()
    return nn.Parameter(slab)


def _parts(slab: Tensor, shapes: Shapes) -> dict[str, Tensor]:
    """Take ``(..., values)`` apart at once: ``(..., *shape)`` of each tensor, by name."""
    sizes = [*map(prod, shapes.values())]
    parts = slab.split([*sizes, slab.shape[-1] - sum(sizes)], -1)
    shaped = zip(shapes.items(), parts, strict=False)
    return {name: part.view(*slab.shape[:-1], *shape) for (name, shape), part in shaped}


def _one_or_all(tensors: Sequence[Tensor]) -> Tensor:
    """Return frozen tensors side by side, or the first where all have its values."""
    values = [tensor.detach() for tensor in tensors]
    same = all(torch.equal(value, values[0]) for value in values[1:])
    return values[0] if same else stacked(values)
