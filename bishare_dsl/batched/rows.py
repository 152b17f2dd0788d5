"""Mixed batches: calls of a model in which rows use different adapters.

A batch holds the factors of its adapters, ``(adapters, rows, side)`` instead of an adapter's ``(rows,
side)``, and the forward of each region that applies them. It is opened for a thread. Regions prepared by
`route_to_open_batch` dispatch their calls to it. Their factors are then `OfRows`, which contain the adapter
of each row. If this is unknown, the call fails.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from bishare_dsl.batched.recomputed import Recomputed
from bishare_dsl.rewrite.grouped_rows import Call, Grouping, Place, RegionRows
from bishare_dsl.rewrite.ops import OfRows
from bishare_dsl.rewrite.rewritten import wrap_forward
from bishare_dsl.transforms.factor import Factor, map_tensors

Stack = tuple[Callable[[Sequence[Tensor]], Tensor], Sequence[Tensor]]
"""A function that stacks a tensor of all adapters, and the tensors to stack."""

Factors = tuple[Factor, ...] | Callable[[Mapping[str, Stack]], Recomputed]
"""The factors of a region, ``(adapters, rows, side)`` each, or a function that computes them from tensors."""


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
        of_call: whether it was opened for one call of the model.
        call: the known facts about that call, or about any call.
        trains: whether the adapters receive gradients.
        stacks: returns the adapters' tensors by name, read now, or when the call began.
        dropout_active: whether dropout is active in terms.
    """

    owner: object
    grouping: Grouping
    forwards: Mapping[nn.Module, Callable[..., Any]]
    factors: Mapping[nn.Module, Factors] = field(repr=False)
    places: Mapping[nn.Module, Place] = field(default_factory=dict, repr=False)
    lease: Lease = field(default_factory=Lease, repr=False)
    repeats: bool = False
    of_call: bool = False
    call: Call = field(default_factory=Call)
    trains: bool = False
    stacks: Callable[[], Mapping[str, Stack]] = field(default=dict, repr=False)
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


_eager = _Eager()
_compiled = _Compiled()


def open_batches() -> tuple[RowBatch, ...]:
    """Return the open batches of this thread (in compiled code: of this process), the last first."""
    return _compiled.stack if torch.compiler.is_compiling() else _eager.stack


def set_batches(stack: tuple[RowBatch, ...]) -> None:
    """Set the open batches."""
    _eager.stack = stack
    # Remove the rows of the call, to avoid recompilation for each number of rows and tokens.
    _compiled.stack = tuple(
        replace(batch, call=Call(text=batch.call.text)) if batch.of_call else batch
        for batch in stack
    )


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
    if factors[0].rows.grouping.adapters > 1:
        return factors
    return tuple([map_tensors(row.factor, lambda tensor: tensor[0]) for row in factors])


def row_factors(region: nn.Module) -> tuple[OfRows, ...]:
    """Return a region's factors from the open batch that contains it, batched even for one adapter."""
    batch = next(batch for batch in open_batches() if region in batch.factors)
    rows = RegionRows(batch.grouping, batch.places[region], batch.repeats, batch.call)
    factors = batch.factors[region]
    if not callable(factors):
        return tuple([OfRows(factor, rows) for factor in factors])
    recomputed = factors(batch.stacks())
    return tuple(
        [OfRows(f, rows, recomputed.recompute(i)) for i, f in enumerate(recomputed.factors())]
    )


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
