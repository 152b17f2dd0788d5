"""Mixed batches: one call of a model in which rows belong to different adapters.

A batch holds the effective factors of its adapters, ``(adapters, rows, width)`` where one adapter has
``(rows, width)``, and the forward of each region that applies them. It is opened for a thread. Regions that
`accept_rows` let it have their call; a factor of it is a `RowFactor`, which `ops.down` and `ops.up` apply
to each row's own part.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bishare_dsl.rewrite.rewritten import wrap_forward


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
        return cls(
            len(owners),
            len(members),
            torch.tensor(order, device=device),
            torch.tensor(places, device=device),
        )

    def gather(self, x: Tensor) -> Tensor:
        """Sort by adapter: ``(rows, ..., d)``, or all tokens in one axis, to ``(adapters, tokens, d)``."""
        x = x.reshape(self.rows, -1, x.shape[-1])
        if self.order is not None:
            x = x.index_select(0, self.order.to(x.device))
        return x.reshape(self.adapters, -1, x.shape[-1])

    def scatter(self, y: Tensor) -> Tensor:
        """Undo `gather`, but for the shape: ``(adapters, tokens, d)`` to ``(rows, tokens, d)``."""
        if self.places is None:
            return y
        places = self.places.to(y.device)
        return y.reshape(len(self.order), -1, y.shape[-1]).index_select(0, places)  # type: ignore[arg-type]


class RowFactor(NamedTuple):
    """An effective factor of each adapter of a batch, ``(adapters, rows, width)``."""

    factor: Tensor
    grouping: Grouping

    def down(self, x: Tensor) -> Tensor:
        """Compute ``x A^T`` with each row's own A: tokens by adapter, ``(tokens, rows)``."""
        z = torch.bmm(self.grouping.gather(x), self.factor.to(x).transpose(1, 2))
        return z.flatten(0, 1)

    def look_up(self, ids: Tensor) -> Tensor:
        """Return the columns of each row's own A at some indices, ``(tokens, rows)`` by adapter."""
        places = self.grouping.gather(ids.unsqueeze(-1))
        columns = self.factor.transpose(1, 2)
        z = columns.gather(1, places.expand(-1, -1, columns.shape[-1]))
        return z.flatten(0, 1)

    def up(self, y: Tensor, z: Tensor) -> Tensor:
        """Compute ``y + z B`` with each row's own B, where ``z`` is as `down` gives it.

        Where a row's B is zero the result is ``y``, bit for bit.
        """
        b = self.factor.to(y)
        z = z.to(y).reshape(len(b), -1, z.shape[-1])
        if self.grouping.order is None:
            return torch.baddbmm(y.reshape(len(b), -1, y.shape[-1]), z, b).view(y.shape)
        return y + self.grouping.scatter(torch.bmm(z, b)).reshape(y.shape)


@dataclass(frozen=True)
class RowBatch:
    """What the regions of a model run while a mixed batch is open.

    Attributes:
        owner: what made it.
        rows: how many rows have names.
        repeats: whether a call may have each row several times, side by side.
        of_call: whether it was opened for one call of the model.
        forwards: of each region that the batch has a say in.
        factors: what these forwards read.
    """

    owner: object
    rows: int
    forwards: Mapping[nn.Module, Callable[..., Any]]
    factors: Mapping[nn.Module, tuple[RowFactor, ...]] = field(repr=False)
    repeats: bool = False
    of_call: bool = False


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
    _eager.stack = _compiled.stack = stack


@contextmanager
def open_batch(batch: RowBatch) -> Iterator[None]:
    """Keep a batch open in a block."""
    before = _eager.stack
    set_batches((batch, *before))
    try:
        yield
    finally:
        set_batches(before)


def rows_of(region: nn.Module) -> tuple[RowFactor, ...]:
    """Return the factors of a region in the open batch that has it."""
    return next(batch.factors[region] for batch in open_batches() if region in batch.factors)


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
