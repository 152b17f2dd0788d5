"""Mixed batches: one call of a model in which rows belong to different adapters.

A batch holds the effective factors of its adapters, ``(adapters, rows, width)`` where one adapter has
``(rows, width)``, and the forward of each region that applies them. It is opened for a thread. Regions that
`accept_rows` let it have their call; a factor of it is a `RowFactor`, which `ops.down` and `ops.up` apply
to each row's own part. Where it cannot be known whose a row is, that is an error and no guess.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, NoReturn, cast

import torch
from torch import Tensor, nn

from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.mixed.remade import Remade
from bishare_dsl.rewrite.rewritten import wrap_forward


def numbers_on(device: torch.device, numbers: Sequence[int]) -> Tensor:
    """Make a tensor of numbers on a device, without waiting for what runs there."""
    return torch.tensor(numbers, dtype=torch.long).to(device, non_blocking=True)


class Grouping(NamedTuple):
    """Which rows of a batch belong to which adapter.

    Attributes:
        rows: how many rows have names of their own. The rows of a call may be a multiple, for beam search
            repeats each.
        adapters: how many adapters there are.
        order: the rows, adapter by adapter, each adapter as often as the one with the most rows, so that
            some stand twice; None where the rows are in that order as they come.
        places: where in that order each row stands.
    """

    rows: int
    adapters: int
    order: Tensor | None = None
    places: Tensor | None = None

    @classmethod
    def of(cls, owners: Sequence[int], device: torch.device) -> Grouping:
        """Group rows by the numbers of their adapters, which start at 0."""
        members: list[list[int]] = [[] for _ in range(max(owners) + 1)]
        for row, owner in enumerate(owners):
            members[owner].append(row)
        size = max(map(len, members))
        order = [row for rows in members for row in rows + rows[:1] * (size - len(rows))]
        if order == list(range(len(owners))):
            return cls(len(owners), len(members))
        places = [owner * size + members[owner].index(row) for row, owner in enumerate(owners)]
        return cls(len(owners), len(members), numbers_on(device, order), numbers_on(device, places))

    def gather(self, x: Tensor) -> Tensor:
        """Sort by adapter: ``(rows, ..., d)``, or all tokens in one axis, to ``(adapters, tokens, d)``."""
        if self.order is not None:
            x = x.reshape(self.rows, -1, x.shape[-1])
            x = x.index_select(0, self.order.to(x.device))
        return x.reshape(self.adapters, -1, x.shape[-1])

    def owners(self, device: torch.device) -> Tensor:
        """Return the number of each row's adapter."""
        if self.places is None:
            return torch.arange(self.rows, device=device) // (self.rows // self.adapters)
        size = len(self.order) // self.adapters  # type: ignore[arg-type]
        return self.places.to(device).div(size, rounding_mode="floor")

    def scatter(self, y: Tensor) -> Tensor:
        """Undo `gather`, but for the shape: ``(adapters, tokens, d)`` to ``(rows, tokens, d)``."""
        if self.places is None:
            return y
        places = self.places.to(y.device)
        return y.reshape(len(self.order), -1, y.shape[-1]).index_select(0, places)  # type: ignore[arg-type]


class Call(NamedTuple):
    """What the inputs of a call of a model tell of its rows.

    Attributes:
        rows: how many there are; None where no input tells.
        tokens: how many tokens each may have: one number for each text that is given.
        text: whether the rows are those of a text, in which images and sounds have places of their own.
    """

    rows: int | None
    tokens: tuple[int, ...]
    text: bool


class Place(NamedTuple):
    """Where in its model a region is.

    Attributes:
        path: its name there.
        in_block: whether it is in a block, or else a head, a pooler or an embedding.
        aside: whether it reads images or sound, beside what reads text.
        in_expert: whether it is an expert, or has several.
    """

    path: str
    in_block: bool
    aside: bool
    in_expert: bool


class Reader(NamedTuple):
    """A region of a batch of several adapters, and what is known of the rows that it reads.

    Attributes:
        place: where it is.
        names: how many rows have names.
        repeats: whether there may be a multiple of these.
        text: as of a `Call`.
        call: None outside of a call of the model, and in compiled code.
    """

    place: Place
    names: int
    repeats: bool
    text: bool
    call: Call | None

    @property
    def rows(self) -> int | None:
        """How many rows there are; None where that is some multiple of the names."""
        if self.call is not None and self.call.rows is not None:
            return self.call.rows
        return None if self.repeats or torch.compiler.is_compiling() else self.names

    def check(self, x: Tensor, single: bool) -> None:
        """Check that ``(..., d)`` has the call's rows first, or all of their tokens in one axis.

        Args:
            x: what the region reads.
            single: whether it may have one token of each row.

        Raises:
            AdapterError: it has not, or that cannot be known (BS682).
        """
        if self.place.aside and self.text:
            self.refuse("it reads images or sound, and no input tells which row has which")
        *axes, width = x.shape
        if len(axes) > 1 and axes[0] == axes[1] and 0 < x.stride(0) < x.stride(1):
            self.refuse("there are as many tokens as rows, and the tokens seem to come first")
        rows, flat = self.rows, len(axes) == 1
        if rows is None:
            fits = axes[0] % self.names == 0 and (not flat or torch.compiler.is_compiling())
        else:
            tokens = self.call.tokens if self.call and flat else ()
            fits = (axes[0] == rows and (single or not flat)) or axes[0] in [
                rows * n for n in tokens
            ]
        if not fits:
            self.refuse(
                f"its input is {(*axes, width)}, and the call has {rows or self.names} rows"
            )

    def spread(self, ids: Tensor) -> Tensor:
        """Repeat indices that all rows have in common, such as positions, ``(1, n)``, for each row.

        Raises:
            AdapterError: they are not these, and not of the rows either (BS682).
        """
        if ids.ndim > 1 and len(ids) == 1 and self.rows is not None:
            ids = ids.repeat(self.rows, *[1] * (ids.ndim - 1))
        self.check(ids.unsqueeze(-1), single=False)
        return ids

    def refuse(self, why: str) -> NoReturn:
        """Raise that it cannot be told whose a row is (BS682)."""
        raise AdapterError(codes.MIXED_PLACES(path=self.place.path, why=why))


class RowFactor(NamedTuple):
    """An effective factor of each adapter of a batch, ``(adapters, rows, width)``; ``reader`` applies it.

    ``again`` makes it again, for a backward; None where it is there anyway.
    """

    factor: Tensor
    grouping: Grouping
    reader: Reader
    again: Callable[[], Tensor] | None = None

    @property
    def in_order(self) -> bool:
        """Whether rows come adapter by adapter, equally many of each."""
        return self.grouping.order is None

    def checked(self, x: Tensor) -> Tensor:
        """Return the factor, for what a region reads.

        Raises:
            AdapterError: whose a row is cannot be known (BS682).
        """
        self.reader.check(x, single=not self.reader.place.in_block)
        return self.factor

    def down(self, x: Tensor) -> Tensor:
        """Compute ``x A^T`` with each row's own A: tokens by adapter, ``(tokens, rows)``.

        Raises:
            AdapterError: whose a row is cannot be known (BS682).
        """
        a = self.checked(x).to(x)
        return torch.bmm(self.grouping.gather(x), a.transpose(1, 2)).flatten(0, 1)

    def look_up(self, ids: Tensor, padding: int | None, keep: Tensor | None) -> Tensor:
        """Return the columns of each row's own A at some indices, ``(tokens, rows)`` by adapter.

        Args:
            ids: indices.
            padding: an index from which no gradient comes.
            keep: what dropout has made of the ones that the indices stand for.

        Raises:
            AdapterError: whose a row is cannot be known (BS682).
        """
        keep = keep if keep is None else self.reader.spread(keep)
        ids = self.reader.spread(ids)
        places = self.grouping.gather(ids.unsqueeze(-1))
        columns = self.factor.transpose(1, 2)
        z = columns.gather(1, places.expand(-1, -1, columns.shape[-1]))
        if padding is not None:
            z = torch.where(places == padding, z.detach(), z)
        if keep is not None:
            z = z * self.grouping.gather(keep.unsqueeze(-1))
        return z.flatten(0, 1)

    def up(self, y: Tensor, z: Tensor) -> Tensor:
        """Compute ``y + z B`` with each row's own B, where ``z`` is as `down` or `look_up` gives it.

        A ``y`` that all rows have in common becomes one for each. Where a row's B is zero the result is
        ``y``, bit for bit.
        """
        b = self.factor.to(y)
        z = z.to(y).reshape(len(b), -1, z.shape[-1])
        if len(y) == 1 and (rows := self.reader.rows) is not None:
            y = y.expand(rows, *y.shape[1:])
        if self.grouping.order is None:
            return torch.baddbmm(y.reshape(len(b), -1, y.shape[-1]), z, b).view(y.shape)
        return y + self.grouping.scatter(torch.bmm(z, b)).reshape(y.shape)


Factors = tuple[Tensor, ...] | Callable[[], Remade]
"""Those that a region reads, ``(adapters, rows, width)`` each, or what makes them when it does."""


class Lease:
    """Says by being alive that a batch is open, whichever thread opened it."""


@dataclass(frozen=True, eq=False)
class RowBatch:
    """What the regions of a model run while a mixed batch is open.

    Attributes:
        owner: what made it.
        grouping: of the rows that have names.
        forwards: of each region that the batch has a say in.
        factors: what these forwards read, or what makes it when they do.
        places: of these regions.
        tensors: of regions that can do without factors where they read few tokens, by slot.
        lease: what is alive for as long as the batch is open.
        repeats: whether a call may have each row several times, side by side.
        text: as of a `Call`.
        of_call: whether it was opened for one call of the model.
        call: what is known of that call.
        trains: whether the adapters get gradients.
        drops: whether terms drop values of their inputs.
    """

    owner: object
    grouping: Grouping
    forwards: Mapping[nn.Module, Callable[..., Any]]
    factors: Mapping[nn.Module, Factors] = field(repr=False)
    places: Mapping[nn.Module, Place] = field(default_factory=dict, repr=False)
    tensors: Mapping[nn.Module, Sequence[Tensor]] = field(default_factory=dict, repr=False)
    lease: Lease = field(default_factory=Lease, repr=False)
    repeats: bool = False
    text: bool = False
    of_call: bool = False
    call: Call | None = None
    trains: bool = False
    drops: bool = False

    @property
    def rows(self) -> int:
        """How many rows have names."""
        return self.grouping.rows


class _Eager(threading.local):
    stack: tuple[RowBatch, ...] = ()


class _Compiled:
    """`torch.compile` sees no change of what belongs to a thread, so that compiled code reads this."""

    def __init__(self) -> None:
        self.stack: tuple[RowBatch, ...] = ()


_eager, _compiled = _Eager(), _Compiled()


def open_batches() -> tuple[RowBatch, ...]:
    """Return the batches that are open in this thread (in compiled code: this process), the last first."""
    return _compiled.stack if torch.compiler.is_compiling() else _eager.stack


def set_batches(stack: tuple[RowBatch, ...]) -> None:
    """Let these be the batches that are open."""
    _eager.stack = stack
    # Not compiled anew for each number of rows and of tokens.
    _compiled.stack = tuple(replace(batch, call=None) if batch.call else batch for batch in stack)


@contextmanager
def open_batch(batch: RowBatch) -> Iterator[None]:
    """Keep a batch open in a block."""
    with _reopened((batch, *_eager.stack)):
        yield


def again() -> AbstractContextManager[None] | None:
    """Return a block, for any thread, in which those batches are open that are now; None where none is."""
    return _reopened(stack) if (stack := open_batches()) else None


@contextmanager
def _reopened(stack: tuple[RowBatch, ...]) -> Iterator[None]:
    before = _eager.stack
    set_batches(stack)
    try:
        yield
    finally:
        set_batches(before)


def rows_of(region: nn.Module) -> tuple[RowFactor, ...] | tuple[Tensor, ...]:
    """Return the factors of a region in the open batch that has it; of one adapter, as it has them alone."""
    factors = row_factors(region)
    if factors[0].grouping.adapters > 1:
        return factors
    return tuple([row.factor[0] for row in factors])


def row_factors(region: nn.Module) -> tuple[RowFactor, ...]:
    """Return the factors of a region in the open batch that has it, also of one adapter."""
    batch = batch_of(region)
    reader, found = reader_of(region, batch), batch.factors[region]
    made = found() if callable(found) else None
    factors = made.factors() if made else cast(tuple[Tensor, ...], found)
    return tuple(
        [
            RowFactor(factor, batch.grouping, reader, None if made is None else made.later(number))
            for number, factor in enumerate(factors)
        ]
    )


def reader_of(region: nn.Module, batch: RowBatch) -> Reader:
    """Return what is known of the rows that a region of a batch reads."""
    return Reader(batch.places[region], batch.rows, batch.repeats, batch.text, batch.call)


def drops_of(region: nn.Module) -> bool:
    """Tell whether terms drop values of what a region reads, in the open batch that has it."""
    return region.training and batch_of(region).drops


def batch_of(region: nn.Module) -> RowBatch:
    """Return the open batch that has a region."""
    return next(batch for batch in open_batches() if region in batch.factors)


def accept_rows(region: nn.Module) -> None:
    """Let an open mixed batch have the calls of a module, which otherwise runs what it runs now."""
    wrap_forward(region, mixed_forward)


def mixed_forward(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Make a forward that leaves a call to the open batch that has a say in it."""

    def dispatch(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        for batch in open_batches():
            if self in batch.forwards:
                return batch.forwards[self](self, *args, **kwargs)
        return forward(self, *args, **kwargs)

    return functools.wraps(forward)(dispatch)
