"""Mixed batches: calls of a model in which rows use different adapters.

A batch holds the factors of its adapters, ``(adapters, rows, side)`` instead of an adapter's ``(rows,
side)``, and the forward of each region that applies them. It is opened for a thread. Regions prepared by
`route_to_open_batch` dispatch their calls to it. Their factors are then `OfRows`, which contain the adapter
of each row. If this is unknown, the call fails.
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
    """The rows of a model's call, as derived from its inputs.

    Attributes:
        rows: the number of rows; None if unknown.
        tokens: the possible numbers of tokens of a row, one for each text input.
        text: whether the rows are texts, which have placeholders for images and sound.
    """

    rows: int | None
    tokens: tuple[int, ...]
    text: bool


class Place(NamedTuple):
    """The location of a region in its model.

    Attributes:
        path: of the region.
        in_block: whether it is in a block, not a head, a pooler or an embedding.
        aside: whether it reads images or sound in a model that also reads text.
        in_expert: whether it is an expert, or has experts.
    """

    path: str
    in_block: bool
    aside: bool
    in_expert: bool


class RegionRows(NamedTuple):
    """A region in a batch of several adapters, with the known facts about its rows.

    Attributes:
        grouping: of the rows.
        place: where the region is.
        repeats: whether the rows may be a multiple of the named rows.
        text: see `Call`.
        call: None outside of a call of the model, and in compiled code.
    """

    grouping: Grouping
    place: Place
    repeats: bool
    text: bool
    call: Call | None

    @property
    def adapters(self) -> int:
        """The number of adapters."""
        return self.grouping.adapters

    @property
    def in_order(self) -> bool:
        """Whether rows are sorted by adapter, with equally many for each."""
        return self.grouping.order is None

    @property
    def names(self) -> int:
        """The number of named rows."""
        return self.grouping.rows

    def gather(self, x: Tensor) -> Tensor:
        """Sort by adapter; see `Grouping.gather`."""
        return self.grouping.gather(x)

    def scatter(self, sorted_: Tensor, y: Tensor) -> Tensor:
        """Undo `gather`, returning the shape of ``y``."""
        return self.grouping.scatter(sorted_).reshape(y.shape)

    def repeat(self, y: Tensor) -> Tensor:
        """Repeat a ``y`` that all rows share for each row."""
        if len(y) == 1 and (rows := self.rows) is not None:
            return y.expand(rows, *y.shape[1:])
        return y

    @property
    def rows(self) -> int | None:
        """The number of rows; None if it is an unknown multiple of the names."""
        if self.call is not None and self.call.rows is not None:
            return self.call.rows
        return None if self.repeats or torch.compiler.is_compiling() else self.names

    def check(self, x: Tensor, single: bool | None = None) -> None:
        """Check that the first axis of ``(..., d)`` is the call's rows, or all of their tokens.

        Args:
            x: the input of the region.
            single: whether it may have one token for each row; by default, outside of blocks.

        Raises:
            AdapterError: it is not, or this is unknown (BS682).
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
        """Repeat indices that all rows share, such as positions, ``(1, n)``, for each row.

        Raises:
            AdapterError: they are neither shared nor indices of the rows (BS682).
        """
        if ids.ndim > 1 and len(ids) == 1 and self.rows is not None:
            ids = ids.repeat(self.rows, *[1] * (ids.ndim - 1))
        self.check(ids.unsqueeze(-1), single=False)
        return ids

    def refuse(self, why: str) -> NoReturn:
        """Raise the error that the adapter of a row is unknown (BS682)."""
        raise AdapterError(codes.MIXED_PLACES(path=self.place.path, why=why))


Factors = tuple[Factor, ...] | Callable[[], Recomputed]
"""The factors of a region, ``(adapters, rows, side)`` each, or a function that computes them when called."""


class Lease:
    """Marks a batch as open while it is referenced, by any thread."""


@dataclass(frozen=True, eq=False)
class RowBatch:
    """The forwards and factors of a model's regions while a mixed batch is open.

    Attributes:
        owner: the object that created it.
        grouping: of the named rows.
        forwards: the forward of each region that this batch overrides.
        factors: the factors of these forwards, or functions that compute them when called.
        places: the locations of these regions.
        lease: referenced as long as the batch is open.
        repeats: whether a call may repeat each row several times, in adjacent rows.
        text: see `Call`.
        of_call: whether it was opened for one call of the model.
        call: the rows of that call.
        trains: whether the adapters receive gradients.
        dropout_active: whether dropout is active in terms.
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
    dropout_active: bool = False

    @property
    def rows(self) -> int:
        """The number of named rows."""
        return self.grouping.rows


class _Eager(threading.local):
    stack: tuple[RowBatch, ...] = ()


class _Compiled:
    """Read by compiled code, because Dynamo does not guard on thread-locals."""

    def __init__(self) -> None:
        self.stack: tuple[RowBatch, ...] = ()


_eager, _compiled = _Eager(), _Compiled()


def open_batches() -> tuple[RowBatch, ...]:
    """Return the open batches of this thread (in compiled code: of this process), the last first."""
    return _compiled.stack if torch.compiler.is_compiling() else _eager.stack


def set_batches(stack: tuple[RowBatch, ...]) -> None:
    """Set the open batches."""
    _eager.stack = stack
    # Remove the call, to avoid recompilation for each number of rows and tokens.
    _compiled.stack = tuple(replace(batch, call=None) if batch.call else batch for batch in stack)


@contextmanager
def open_batch(batch: RowBatch) -> Iterator[None]:
    """Keep a batch open in a block."""
    with _reopened((batch, *_eager.stack)):
        yield


def reopen_batches() -> AbstractContextManager[None] | None:
    """Return a context manager that reopens the open batches in any thread; None if there are none."""
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
    """Return a region's factors from the open batch that contains it, unbatched for one adapter."""
    factors = row_factors(region)
    if factors[0].rows.adapters > 1:
        return factors
    return tuple([map_tensors(row.factor, lambda tensor: tensor[0]) for row in factors])


def row_factors(region: nn.Module) -> tuple[OfRows, ...]:
    """Return a region's factors from the open batch that contains it, batched even for one adapter."""
    batch = next(batch for batch in open_batches() if region in batch.factors)
    rows = RegionRows(batch.grouping, batch.places[region], batch.repeats, batch.text, batch.call)
    found = batch.factors[region]
    if not callable(found):
        return tuple([OfRows(factor, rows) for factor in found])
    made = found()
    return tuple([OfRows(f, rows, made.recompute(i)) for i, f in enumerate(made.factors())])


def dropout_of(region: nn.Module) -> bool:
    """Tell whether dropout is active in a region, in the open batch that contains it."""
    return region.training and next(b for b in open_batches() if region in b.factors).dropout_active


def route_to_open_batch(region: nn.Module) -> None:
    """Dispatch this module's forward to the open batch, if any."""
    wrap_forward(region, mixed_forward)


def mixed_forward(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a forward to dispatch calls to the open batch that overrides it."""

    def dispatch(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        for batch in open_batches():
            if self in batch.forwards:
                return batch.forwards[self](self, *args, **kwargs)
        return forward(self, *args, **kwargs)

    return functools.wraps(forward)(dispatch)
