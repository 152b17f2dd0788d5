"""The rows of a mixed batch: which adapter each row uses, and how a region sorts its inputs by adapter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import adapter as codes


def numbers_on(device: torch.device, numbers: Sequence[int] | np.ndarray) -> Tensor:
    """Create a tensor of integers on a device, without synchronising."""
    return torch.tensor(numbers, dtype=torch.long).to(device, non_blocking=True)


def arrange(groups: Sequence[Sequence[Sequence[int]]], count: int) -> tuple[list[int], list[int]]:
    """Sort rows by group, and within a group by adapter.

    Args:
        groups: for each group, the rows of its adapters. Adapters with fewer rows than another in the
            group are padded by repeating their first row.
        count: the number of rows.

    Returns:
        The row at each position, and the position of each row; rows without a group get the position
        after the last.
    """
    order: list[int] = []
    places: dict[int, int] = {}
    for adapters in groups:
        longest = max(map(len, adapters))
        for rows in adapters:
            places |= {row: len(order) + i for i, row in enumerate(rows)}
            order += [*rows, *[rows[0]] * (longest - len(rows))]
    return order, [places.get(row, len(order)) for row in range(count)]


class Grouping(NamedTuple):
    """The rows of each adapter in a mixed batch, as one group of all adapters.

    Attributes:
        rows: the number of rows with a name. A call may have a multiple, because beam search repeats each.
        adapters: the number of adapters.
        order: the rows sorted by adapter, as from `arrange`; None if they already are.
        places: the position of each row in ``order``.
    """

    rows: int
    adapters: int
    order: Tensor | None = None
    places: Tensor | None = None

    @classmethod
    def of(cls, owners: Sequence[int], device: torch.device) -> Grouping:
        """Group rows by the indices of their adapters, which start at 0."""
        members: list[list[int]] = [[] for _ in range(max(owners) + 1)]
        for row, owner in enumerate(owners):
            members[owner].append(row)
        order, places = arrange([members], len(owners))
        if order == list(range(len(owners))):
            return cls(len(owners), len(members))
        return cls(len(owners), len(members), numbers_on(device, order), numbers_on(device, places))

    @property
    def in_order(self) -> bool:
        """Whether rows are sorted by adapter, with equally many for each."""
        return self.order is None

    def gather(self, x: Tensor) -> Tensor:
        """Sort by adapter: ``(rows, ..., d)``, or all tokens in one axis, to ``(adapters, tokens, d)``."""
        if self.order is not None:
            x = x.reshape(self.rows, -1, x.shape[-1])
            x = x.index_select(0, self.order.to(x.device))
        return x.reshape(self.adapters, -1, x.shape[-1])

    def owners(self, device: torch.device) -> Tensor:
        """Return the index of each row's adapter."""
        if self.places is None:
            return torch.arange(self.rows, device=device) // (self.rows // self.adapters)
        size = len(self.order) // self.adapters  # type: ignore[arg-type]
        return self.places.to(device).div(size, rounding_mode="floor")

    def scatter(self, sorted_: Tensor, y: Tensor) -> Tensor:
        """Undo `gather`, returning the shape of ``y``."""
        if self.order is not None and self.places is not None:
            places = self.places.to(sorted_.device)
            sorted_ = sorted_.reshape(len(self.order), -1, sorted_.shape[-1])
            sorted_ = sorted_.index_select(0, places)
        return sorted_.reshape(y.shape)


class Call(NamedTuple):
    """The rows of a model's call, as derived from its inputs.

    Attributes:
        rows: the number of rows; None if unknown.
        tokens: the possible numbers of tokens of a row, one for each text input.
        text: whether the rows are texts, which have placeholders for images and sound.
    """

    rows: int | None = None
    tokens: tuple[int, ...] = ()
    text: bool = False


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
        call: has no rows outside of a call of the model, and in compiled code.
    """

    grouping: Grouping
    place: Place
    repeats: bool
    call: Call

    def gather(self, x: Tensor) -> Tensor:
        """Sort by adapter, as `Grouping.gather`, after `check`."""
        self.check(x)
        return self.grouping.gather(x)

    def repeat(self, y: Tensor) -> Tensor:
        """Repeat a ``y`` that all rows share for each row."""
        rows = self.rows
        if len(y) == 1 and rows is not None:
            return y.expand(rows, *y.shape[1:])
        return y

    @property
    def rows(self) -> int | None:
        """The number of rows; None if it is an unknown multiple of the names."""
        if self.call.rows is not None:
            return self.call.rows
        return None if self.repeats or torch.compiler.is_compiling() else self.grouping.rows

    def check(self, x: Tensor, single: bool | None = None) -> None:
        """Check that the first axis of ``(..., d)`` is the call's rows, or all of their tokens.

        Args:
            x: the input of the region.
            single: whether it may have one token for each row; by default, outside of blocks.

        Raises:
            AdapterError: it is not, or this is unknown (BS682).
        """
        if single is None:
            single = not self.place.in_block
        if self.place.aside and self.call.text:
            self.refuse("it reads images or sound, and no input tells which row has which")
        *axes, width = x.shape
        if len(axes) > 1 and axes[0] == axes[1] and 0 < x.stride(0) < x.stride(1):
            self.refuse("there are as many tokens as rows, and the tokens seem to come first")
        if not self._fits(axes[0], is_flat=len(axes) == 1, single=single):
            called = self.rows or self.grouping.rows
            self.refuse(f"its input is {(*axes, width)}, and the call has {called} rows")

    def _fits(self, length: int, *, is_flat: bool, single: bool) -> bool:
        """Tell whether a first axis is the call's rows or, if it is the only one, all of their tokens."""
        rows = self.rows
        if rows is None:
            is_known = not is_flat or torch.compiler.is_compiling()
            return is_known and length % self.grouping.rows == 0
        if length == rows and (single or not is_flat):
            return True
        return is_flat and any(length == rows * tokens for tokens in self.call.tokens)

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
