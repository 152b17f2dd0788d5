"""The tensors of many adapters as rows of one tensor, for joint training and for servers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bishare_dsl.plan import Plan
from bishare_dsl.rewrite.grouped_rows import numbers_on
from bishare_dsl.transforms import Width, load_transform, stack_or_share, term_factors
from bishare_dsl.transforms.factor import tensors_of

Shapes = Mapping[str, tuple[int, ...]]

VIEWS = 20_000
"""Maximum number of cached views of factors, before the cache is cleared."""


class Kind(NamedTuple):
    """The names and shapes of an adapter's tensors.

    Attributes:
        own, common: shapes by name, of the tensors in each row and of those stored once for all rows.
        frozen: tensors that do not train and are not in a bank, of each adapter or of all.
    """

    own: Shapes
    common: Shapes
    frozen: Mapping[str, Tensor]


class Bank:
    """The tensors of several adapters of one plan.

    Args:
        kind: of the adapters.
        rows: their number.
        dtype: of the bank.
        device: of the bank.
        trains: whether the bank receives gradients.

    Attributes:
        memory: all values.
        own: ``(rows, values)``, the private values of each adapter.
        common: ``(1, values)``, values stored once for all rows.
    """

    def __init__(
        self,
        kind: Kind,
        rows: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        *,
        trains: bool = False,
    ) -> None:
        self.kind = kind
        size = rows * _count(kind.own)
        self.memory = torch.zeros(size + _count(kind.common), dtype=dtype, device=device)
        self.own = nn.Parameter(self.memory[:size].view(rows, size // rows), trains)
        self.common = nn.Parameter(self.memory[size:].unsqueeze(0), trains)
        self._members: Sequence[Mapping[str, nn.Parameter]] = ()

    @classmethod
    def of_members(
        cls, members: Sequence[Mapping[str, nn.Parameter]], shared: frozenset[str] = frozenset()
    ) -> Bank:
        """Create the bank of adapters that train together; their parameters become views of it.

        Args:
            members: each adapter's parameters by their names in the plan, which is one for all; trainable
                ones are float32.
            shared: the names of tensors stored once for all adapters; they receive all adapters' gradients.
        """
        like = next(iter(members[0].values()))
        bank = cls(_kind(members, shared), len(members), like.dtype, like.device, trains=True)
        bank._members = members
        with torch.no_grad():
            for row, member in zip(bank.own, members, strict=True):
                _write(row, member, bank.kind.own)
            _write(bank.common[0], members[0], bank.kind.common)
        bank.attach()
        return bank

    def attach(self) -> None:
        """Make the adapters' parameters views of the bank, also after other code has moved them."""
        for row, member in enumerate(self._members):
            values = _parts(self.own.detach()[row], self.kind.own)
            values |= _parts(self.common.detach()[0], self.kind.common)
            for name, frozen in self.kind.frozen.items():
                values[name] = frozen[row] if frozen.dim() == 3 else frozen
            for name, tensor in member.items():
                tensor.data = values[name]
                tensor.requires_grad_(False)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters: `own` and `common`, without empty tensors."""
        return [part for part in (self.own, self.common) if part.numel()]

    def views(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return tensors of some rows by name: private as ``(R, *shape)``, common as ``shape``.

        They are views of the bank, or of one copy if these are not all its rows in order. Their gradients
        reach the bank as one tensor.
        """
        index = numbers_on(self.own.device, rows)
        every = [*rows] == [*range(len(self.own))]

        def of_rows(tensor: Tensor) -> Tensor:
            return tensor if every else tensor.index_select(0, index.to(tensor.device))

        frozen = self.kind.frozen.items()
        return {
            **_parts(of_rows(self.own), self.kind.own),
            **_parts(self.common.squeeze(0), self.kind.common),
            **{name: of_rows(value) if value.dim() == 3 else value for name, value in frozen},
        }


class Layout:
    """The positions of a plan's tensors in an adapter's row; each trainable tensor is stored once.

    Random frozen tensors are the same for all adapters, and not in the row. Tensors with the same role at
    sites with a common input are adjacent. If factors are `computed` from the tensors, rather than slices
    of them, the row keeps float32, because rounded tensors could give very different factors.

    Args:
        plan: of the adapters.
        library: whether they belong to one library, so that its `Plan.common` is stored once.

    Attributes:
        own: the shapes of an adapter's private tensors, by name.
        common: the shapes of tensors stored once for all adapters.
        changes: the name of ``g - 1 (1, d_out)`` of each site with a magnitude, by its path. A plain
            one is ``mu``. Others depend on the base's weights, and replace ``mu`` in the row.
        computed: whether some factor is not a slice of the tensors.
        fixed: whether some term has no private tensor, so that empty slots also add an update.
    """

    def __init__(self, plan: Plan, *, library: bool = False) -> None:
        self.plan = plan
        self.width = {site.path: Width(site.d_in, site.d_out) for site in plan.sites}
        scaled = [term for term in plan.terms if term.is_magnitude]
        plain = {term.site for term in scaled if term.options["plain"]}
        self.changes = {
            term.site: term.tensors["mu"] if term.site in plain else f"g - 1 of {term.site}"
            for term in scaled
        }
        names = dict.fromkeys([*self._names(), *(self.changes[path] for path in sorted(plain))])
        shared = plan.common if library else ()
        own = {name: plan.tensor[name].trainable and name not in shared for name in names}
        self.own = {name: plan.tensor[name].shape for name in names if own[name]}
        self.own |= {
            name: (1, self.width[path].d_out)
            for path, name in self.changes.items()
            if path not in plain
        }
        self.common = {name: plan.tensor[name].shape for name in names if not own[name]}

    def _names(self) -> Iterator[str]:
        reading: dict[tuple[str, int], list[Any]] = {}
        for path, terms in self.plan.terms_of.items():
            key = path.rpartition(".")[0], self.width[path].d_in
            reading.setdefault(key, []).extend(t for t in terms if not t.is_magnitude)
        for readers in reading.values():
            by_share = sorted(readers, key=lambda term: term.share)
            for role in dict.fromkeys(role for term in by_share for role in term.tensors):
                yield from (term.tensors[role] for term in by_share if role in term.tensors)

    @cached_property
    def fixed(self) -> bool:
        return any(
            self.own.keys().isdisjoint(term.tensors.values()) for term in self.plan.update_terms
        )

    @cached_property
    def computed(self) -> bool:
        distinct = {}
        for term in self.plan.update_terms:
            shapes = tuple((role, self.plan.tensor[n].shape) for role, n in term.tensors.items())
            distinct[term.share, term.rank, self.width[term.site], shapes] = term
        return any(map(self._computes, distinct.values()))

    def _computes(self, term: Any) -> bool:
        transform = load_transform(term.transform, term.options)
        tensors = {role: torch.zeros(self.plan.tensor[n].shape) for role, n in term.tensors.items()}
        memory = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
        factors = term_factors(transform, tensors, term.rank, self.width[term.site])
        results = (tensor for factor in factors for tensor in tensors_of(factor))
        return any(tensor.untyped_storage().data_ptr() not in memory for tensor in results)

    @property
    def numbers(self) -> int:
        """The number of values of an adapter."""
        return _count(self.own)

    def dtype(self, wanted: torch.dtype) -> torch.dtype:
        """Return the dtype of the slots, for a server that computes in another dtype."""
        return torch.float32 if self.computed else wanted

    def nbytes(self, rows: int, wanted: torch.dtype) -> int:
        """Return the bytes of a number of rows, including common tensors."""
        return (rows * self.numbers + _count(self.common)) * self.dtype(wanted).itemsize


class Slots:
    """The slots of a server: rows of a bank, in which adapters of one plan are loaded and evicted.

    The last row is all zeros, for tokens without an adapter.

    Args:
        plan: of the adapters.
        slots: the maximum number of adapters.
        common: the values of the tensors stored once for all adapters, by name.
        dtype: used by the server.
        device: of the bank.
        library: whether the adapters belong to one library, as in `Layout`.

    Attributes:
        common: the tensors stored once for all adapters, by name.
        row: the row of each slot; the last entry is for no adapter.
        views: factors that are views of the values, so they stay valid when the values change.
        copies: factors computed from the values of some rows, until a value there changes.
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
        self.layout = Layout(plan, library=library)
        self.slots = slots
        kind = Kind(self.layout.own, self.layout.common, {})
        self.bank = Bank(kind, slots + 1, self.layout.dtype(dtype), device)
        self.memory = self.bank.memory
        self._own = self.bank.own.detach()
        self._columns = columns(self.layout.own)
        self.common = _parts(self.bank.common.detach()[0], self.layout.common)
        for name, tensor in self.common.items():
            tensor.copy_(common[name])
        self.row = np.arange(slots + 1)
        self.views: dict[tuple[object, int, int], Any] = {}
        self.copies: dict[tuple[object, int, int], Any] = {}

    def tensor(self, name: str, rows: slice | Tensor = slice(None)) -> Tensor:
        """Return a tensor of some rows, ``(R, *shape)``; a common tensor as ``shape``."""
        if (common := self.common.get(name)) is not None:
            return common
        part = self._own[:, self._columns[name]]
        part = part[rows] if isinstance(rows, slice) else part.index_select(0, rows)
        return part.view(-1, *self.layout.own[name])

    def change(self, path: str, rows: Tensor) -> Tensor:
        """Return ``g - 1`` of a site's magnitude for the adapters in some rows, ``(R, d_out)``.

        It is 0 in the row for no adapter.
        """
        name = self.layout.changes[path]
        if (common := self.common.get(name)) is not None:
            return common.masked_fill((rows == self.slots).unsqueeze(1), 0)
        return self.tensor(name, rows).squeeze(1)

    def pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return an adapter's values as one row, in host memory.

        Args:
            tensors: by name, of the plan and the `Layout.changes`.
        """
        held = [tensors[name].flatten() for name in self.layout.own]
        return torch.cat(held).to(self.memory.dtype) if held else self.memory.new_empty(0).cpu()

    def write_slot(self, slot: int, packed: Tensor) -> None:
        """Write an adapter into a slot."""
        self.copies.clear()
        self._own[self.row[slot]].copy_(packed)

    def read_slot(self, slot: int) -> Tensor:
        """Return a copy of the contents of a slot, in host memory."""
        return self._own[self.row[slot]].cpu().clone()

    def keep_copies(self, kept: Collection[tuple[int, int]]) -> None:
        """Drop the copies for other ranges of rows than these."""
        self.copies = {key: copy for key, copy in self.copies.items() if key[1:] in kept}

    def move_to_front(self, slots: Sequence[int]) -> None:
        """Move slots to the first rows, in this order."""
        if len(self.views) > VIEWS:
            self.views.clear()
        if (self.row[slots] == np.arange(len(slots))).all():
            return
        self.copies.clear()
        row = self.row.copy()
        slot_at = np.argsort(self.row)
        for place, slot in enumerate(slots):
            other = slot_at[place]
            old = row[slot]
            slot_at[[place, old]] = slot, other
            row[[slot, other]] = place, old
        moved = np.flatnonzero(row != self.row)
        target = torch.from_numpy(row[moved])
        source = torch.from_numpy(self.row[moved])
        self._own.index_copy_(0, target, self._own.index_select(0, source))
        self.row = row


def columns(shapes: Shapes) -> dict[str, slice]:
    """Return the slice of each tensor in a row, by name."""
    ends = [*accumulate(map(prod, shapes.values()), initial=0)]
    return {name: slice(*ends[i : i + 2]) for i, name in enumerate(shapes)}


def _count(shapes: Shapes) -> int:
    return sum(map(prod, shapes.values()))


def _kind(members: Sequence[Mapping[str, Tensor]], shared: frozenset[str]) -> Kind:
    first = members[0]
    own: dict[str, Any] = {}
    common: dict[str, Any] = {}
    frozen: dict[str, Tensor] = {}
    for name, tensor in first.items():
        if tensor.requires_grad:
            (common if name in shared else own)[name] = tuple(tensor.shape)
        else:
            frozen[name] = _one_or_all([member[name] for member in members])
    return Kind(own, common, frozen)


def _write(row: Tensor, tensors: Mapping[str, Tensor], shapes: Shapes) -> None:
    for name, part in _parts(row, shapes).items():
        part.copy_(tensors[name])


def _parts(slab: Tensor, shapes: Shapes) -> dict[str, Tensor]:
    """Split ``(..., values)`` in one operation into tensors ``(..., *shape)``, by name."""
    sizes = [*map(prod, shapes.values())]
    parts = slab.split([*sizes, slab.shape[-1] - sum(sizes)], -1)
    shaped = zip(shapes.items(), parts, strict=False)
    return {name: part.view(*slab.shape[:-1], *shape) for (name, shape), part in shaped}


def _one_or_all(tensors: Sequence[Tensor]) -> Tensor:
    """Stack frozen tensors, or return the first if all are equal."""
    values = [tensor.detach() for tensor in tensors]
    same = all(torch.equal(value, values[0]) for value in values[1:])
    return values[0] if same else stack_or_share(values)
