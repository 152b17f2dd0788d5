"""Mixed batches: one call of a model in which rows belong to different adapters.

A batch holds the factors of its adapters, ``(adapters, rows, side)`` where one adapter has ``(rows, side)``,
and the forward of each region that applies them. It is opened for a thread. Regions that `accept_rows` let it
have their call; their factors are then `OfRows`, which know whose each row is. Where that cannot be known, it
is an error and no guess.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from bishare_dsl.batched.grouping import Grouping
from bishare_dsl.batched.recomputed import Recomputed
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.rewrite.ops import OfRows
from bishare_dsl.rewrite.rewritten import wrap_forward
from bishare_dsl.transforms.factor import Factor, map_tensors


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


class RegionRows(NamedTuple):
    """A region of a batch of several adapters, and what is known of the rows that it reads.

    Attributes:
        grouping: of the rows.
        place: where the region is.
        repeats: whether there may be a multiple of the rows that have names.
        text: as of a `Call`.
        call: None outside of a call of the model, and in compiled code.
    """

    grouping: Grouping
    place: Place
    repeats: bool
    text: bool
    call: Call | None

    @property
    def adapters(self) -> int:
        """How many adapters there are."""
        return self.grouping.adapters

    @property
    def in_order(self) -> bool:
        """Whether rows come adapter by adapter, equally many of each."""
        return self.grouping.order is None

    @property
    def names(self) -> int:
        """How many rows have names."""
        return self.grouping.rows

    def gather(self, x: Tensor) -> Tensor:
        """Sort by adapter, as `Grouping.gather`."""
        return self.grouping.gather(x)

    def scatter(self, sorted_: Tensor, y: Tensor) -> Tensor:
        """Undo `gather`, in the shape of ``y``."""
        return self.grouping.scatter(sorted_).reshape(y.shape)

    def repeat(self, y: Tensor) -> Tensor:
        """Repeat a ``y`` that all rows have in common for each row."""
        if len(y) == 1 and (rows := self.rows) is not None:
            return y.expand(rows, *y.shape[1:])
        return y

    @property
    def rows(self) -> int | None:
        """How many rows there are; None where that is some multiple of the names."""
        if self.call is not None and self.call.rows is not None:
            return self.call.rows
        return None if self.repeats or torch.compiler.is_compiling() else self.names

    def check(self, x: Tensor, single: bool | None = None) -> None:
        """Check that ``(..., d)`` has the call's rows first, or all of their tokens in one axis.

        Args:
            x: what the region reads.
            single: whether it may have one token of each row; as a rule, outside of blocks.

        Raises:
            AdapterError: it has not, or that cannot be known (BS682).
        """
        single = not self.place.in_block if single is None else single
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


Factors = tuple[Factor, ...] | Callable[[], Recomputed]
"""Those that a region reads, ``(adapters, rows, side)`` each, or what makes them when it does."""


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


def factors_of(region: nn.Module) -> tuple[OfRows, ...] | tuple[Factor, ...]:
    """Return the factors of a region in the open batch that has it; of one adapter, as it has them alone."""
    factors = row_factors(region)
    if factors[0].rows.adapters > 1:
        return factors
    return tuple([map_tensors(row.factor, lambda tensor: tensor[0]) for row in factors])


def row_factors(region: nn.Module) -> tuple[OfRows, ...]:
    """Return the factors of a region in the open batch that has it, also of one adapter."""
    batch = next(batch for batch in open_batches() if region in batch.factors)
    rows = RegionRows(batch.grouping, batch.places[region], batch.repeats, batch.text, batch.call)
    found = batch.factors[region]
    if not callable(found):
        return tuple([OfRows(factor, rows) for factor in found])
    made = found()
    return tuple([OfRows(f, rows, made.again(i)) for i, f in enumerate(made.factors())])


def drops_of(region: nn.Module) -> bool:
    """Tell whether terms drop values of what a region reads, in the open batch that has it."""
    return region.training and next(b for b in open_batches() if region in b.factors).drops


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
