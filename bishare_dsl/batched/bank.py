"""The tensors of many adapters as rows of one tensor: of those that train together, and of those in a
server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bishare_dsl.plan import Plan
from bishare_dsl.transforms import Width, load_transform, stacked, term_factors
from bishare_dsl.transforms.factor import tensors_of

Shapes = Mapping[str, tuple[int, ...]]

VIEWS = 20_000
"""How many factors of layers are kept for batches of as many adapters as those that were."""


class Kind(NamedTuple):
    """Adapters whose tensors have the same names and shapes.

    Attributes:
        rows: theirs in the bank.
        own, common: the shapes of what each row has for itself, and of what all rows have once, by name.
        frozen: what does not train and is in no bank, of each adapter or of all.
    """

    rows: list[int]
    own: Shapes
    common: Shapes
    frozen: Mapping[str, Tensor]


class Bank:
    """The tensors of several adapters.

    Args:
        kinds: the adapters by the shapes of their tensors; what is common has one kind.
        dtype: of the bank.
        device: of the bank.
        trains: whether gradients reach it.

    Attributes:
        memory: all numbers. own: ``(rows, values)``, what each adapter has for itself. Of adapters of several
        plans, the smaller ones
            have zeros at the end, which no one reads.
        common: ``(1, values)``, what all rows have once.
    """

    def __init__(
        self,
        kinds: Sequence[Kind],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        *,
        trains: bool = False,
    ) -> None:
        self.kinds = [*kinds]
        rows = sum(len(kind.rows) for kind in kinds)
        size = rows * max(_count(kind.own) for kind in kinds)
        self.memory = torch.zeros(size + _count(kinds[0].common), dtype=dtype, device=device)
        own, common = self.memory[:size].view(rows, size // rows), self.memory[size:].unsqueeze(0)
        self.own, self.common = (nn.Parameter(part, trains) for part in (own, common))
        self._members: Sequence[Mapping[str, nn.Parameter]] = ()

    @classmethod
    def of_members(
        cls, members: Sequence[Mapping[str, nn.Parameter]], shared: frozenset[str] = frozenset()
    ) -> Bank:
        """Make the bank of adapters that train together; their parameters become views of it.

        Args:
            members: the parameters of each adapter, by their names in the plan; those that train are float32.
            shared: the names of tensors of which there is one for all: it gets the gradients of all adapters.
        """
        alike: dict[Any, list[int]] = {}
        for row, member in enumerate(members):
            key = tuple((name, t.shape, t.requires_grad) for name, t in member.items())
            alike.setdefault(key, []).append(row)
        like = next(iter(members[0].values()))
        kinds = [_kind([*members], rows, shared) for rows in alike.values()]
        bank = cls(kinds, like.dtype, like.device, trains=True)
        bank._members = members
        with torch.no_grad():
            for row, member in enumerate(members):
                kind = bank.kind_of(row)
                _write(bank.own[row], member, kind.own)
                if row == 0:
                    _write(bank.common[0], member, kind.common)
        bank.attach()
        return bank

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
        return [part for part in (self.own, self.common) if part.numel()]

    def views(self, kind: Kind) -> dict[str, Tensor]:
        """Return tensors by name: ``(adapters, *shape)`` of each its own, ``shape`` of what all have once.

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


class Layout:
    """Where the tensors of a plan stand in the row of an adapter: each that trains, once.

    Those that a seed draws are the same for all adapters. What sites that read one input have in one role
    stands side by side. A plan whose factors are `computed` of its tensors, rather than parts of them, keeps
    float32: rounded tensors could give quite another factor.

    Args:
        plan: of the adapters.
        library: whether they belong to one library, so that they also have its `Plan.common` once.

    Attributes:
        own: the shapes of an adapter's tensors, by name.
        common: of what all adapters have once.
        computed: whether some factor is no part of the tensors.
        fixed: whether some term has no tensor of an adapter's own, so that empty slots add something too.
    """

    def __init__(self, plan: Plan, *, library: bool = False) -> None:
        self.plan = plan
        self.width = {site.path: Width(site.d_in, site.d_out) for site in plan.sites}
        names = dict.fromkeys(self._names())
        shared = plan.common if library else ()
        own = {name: plan.tensor[name].trainable and name not in shared for name in names}
        self.own = {name: plan.tensor[name].shape for name in names if own[name]}
        self.common = {name: plan.tensor[name].shape for name in names if not own[name]}

    def _names(self) -> Iterator[str]:
        reading: dict[tuple[str, int], list[Any]] = {}
        for path, terms in self.plan.terms_of.items():
            key = path.rpartition(".")[0], self.width[path].d_in
            reading.setdefault(key, []).extend(terms)
        for found in reading.values():
            by_share = sorted(found, key=lambda term: term.share)
            for role in dict.fromkeys(role for term in by_share for role in term.tensors):
                yield from (term.tensors[role] for term in by_share if role in term.tensors)

    @cached_property
    def fixed(self) -> bool:
        return any(self.own.keys().isdisjoint(term.tensors.values()) for term in self.plan.terms)

    @cached_property
    def computed(self) -> bool:
        distinct = {}
        for term in self.plan.terms:
            shapes = tuple((role, self.plan.tensor[n].shape) for role, n in term.tensors.items())
            distinct[term.share, term.rank, self.width[term.site], shapes] = term
        return any(map(self._computes, distinct.values()))

    def _computes(self, term: Any) -> bool:
        transform = load_transform(term.transform, term.options)
        given = {role: torch.zeros(self.plan.tensor[n].shape) for role, n in term.tensors.items()}
        memory = {tensor.untyped_storage().data_ptr() for tensor in given.values()}
        factors = term_factors(transform, given, term.rank, self.width[term.site])
        made = (tensor for factor in factors for tensor in tensors_of(factor))
        return any(tensor.untyped_storage().data_ptr() not in memory for tensor in made)

    @property
    def numbers(self) -> int:
        """How many numbers an adapter has."""
        return _count(self.own)

    def dtype(self, wanted: torch.dtype) -> torch.dtype:
        """Return the dtype of the slots, for a server that computes in another."""
        return torch.float32 if self.computed else wanted

    def nbytes(self, rows: int, wanted: torch.dtype) -> int:
        """Return the bytes of so many rows, and of what all have once."""
        return (rows * self.numbers + _count(self.common)) * self.dtype(wanted).itemsize


class Slots:
    """The slots of a server: the rows of a bank, in which adapters of one plan come and go.

    Behind them is a row that stays zero, for tokens that have no adapter.

    Args:
        plan: of the adapters.
        slots: how many adapters there is room for.
        common: the values of the tensors that all of them have once, by name.
        dtype: that the server computes in.
        device: of the bank.
        library: whether the adapters belong to one library, as `Layout` takes it.

    Attributes:
        common: the tensors that all adapters have once, by name.
        row: where each slot's numbers are; the last is that of no adapter.
        views: factors that are parts of the numbers, so that they stay right while these change.
    """

    def __init__(
        self,
        plan: Plan,
        slots: int,
        common: Mapping[str, Tensor],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        *,
        library: bool = False,
    ):
        self.layout, self.slots = Layout(plan, library=library), slots
        self._kind = Kind([*range(slots + 1)], self.layout.own, self.layout.common, {})
        self.bank = Bank([self._kind], self.layout.dtype(dtype), device)
        self.memory = self.bank.memory
        self._own = self.bank.own.detach()
        self._columns = columns(self.layout.own)
        self.common = _parts(self.bank.common.detach()[0], self.layout.common)
        for name, tensor in self.common.items():
            tensor.copy_(common[name])
        self.row = np.arange(slots + 1)
        self.views: dict[tuple[object, int, int], Any] = {}

    @property
    def nbytes_each(self) -> int:
        """Bytes that an adapter takes."""
        return self.layout.numbers * self.memory.element_size()

    def tensor(self, name: str, rows: slice | Tensor = slice(None)) -> Tensor:
        """Return a tensor of some rows, ``(R, *shape)``; of what all have once, ``shape``."""
        if (common := self.common.get(name)) is not None:
            return common
        part = self._own[:, self._columns[name]]
        part = part[rows] if isinstance(rows, slice) else part.index_select(0, rows)
        return part.view(-1, *self.layout.own[name])

    def pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return what the bank holds of an adapter, its numbers in a row, in host memory.

        Args:
            tensors: the plan's, by name.
        """
        held = [tensors[name].flatten() for name in self.layout.own]
        return torch.cat(held).to(self.memory.dtype) if held else self.memory.new_empty(0).cpu()

    def put(self, slot: int, packed: Tensor) -> None:
        """Write an adapter into a slot."""
        self._own[self.row[slot]].copy_(packed)

    def take(self, slot: int) -> Tensor:
        """Return a copy of what a slot holds, in host memory."""
        return self._own[self.row[slot]].cpu().clone()

    def bring(self, slots: Sequence[int]) -> None:
        """Move what some slots hold, so that it stands in the first rows, in this order."""
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
        self._own.index_copy_(0, target, self._own.index_select(0, source))
        self.row = row


def columns(shapes: Shapes) -> dict[str, slice]:
    """Return where in a row each tensor stands, by its name."""
    ends = [*accumulate(map(prod, shapes.values()), initial=0)]
    return {name: slice(*ends[i : i + 2]) for i, name in enumerate(shapes)}


def _count(shapes: Shapes) -> int:
    return sum(map(prod, shapes.values()))


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


def _write(row: Tensor, tensors: Mapping[str, Tensor], shapes: Shapes) -> None:
    for name, part in _parts(row, shapes).items():
        part.copy_(tensors[name])


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
