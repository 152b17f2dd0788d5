"""What a region's program for few tokens reads in a mixed batch: the tensors of all adapters of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from bishare_dsl.mixed.rows import Grouping, Reader, batch_of, reader_of
from bishare_dsl.rewrite import few


class FewRows(NamedTuple):
    """What a region reads in an open batch.

    Attributes:
        tensors: by slot, ``(adapters, rows, columns)``.
        grouping: of the rows.
        reader: which checks whose they are.
    """

    tensors: Sequence[Tensor]
    grouping: Grouping
    reader: Reader

    def flat(self, x: Tensor) -> Tensor:
        """Return ``(..., d)`` by adapter, ``(adapters, tokens, d)``, in the dtype of the tensors.

        Raises:
            AdapterError: whose a row is cannot be known (BS682).
        """
        if self.grouping.adapters > 1:
            self.reader.check(x, single=not self.reader.place.in_block)
        dtype = self.tensors[0].dtype
        return self.grouping.gather(x if x.dtype is dtype else x.to(dtype))

    def unflat(self, flat: Tensor, y: Tensor) -> Tensor:
        """Return what was written to ``flat(y)`` in the shape and dtype of ``y``."""
        if self.grouping.order is None and flat.dtype is y.dtype:
            return y
        return self.grouping.scatter(flat).to(y.dtype).reshape(y.shape)


def are_few(region: nn.Module, x: Tensor) -> bool:
    """Tell whether a region reads few tokens of each adapter, and its tensors are there for these."""
    batch = batch_of(region)
    return region in batch.tensors and few.are_few(region, x, batch.grouping.adapters)


def few_rows(region: nn.Module, x: Tensor) -> FewRows:
    """Return what a region with an input reads in the open batch that has it."""
    batch = batch_of(region)
    tensors = few.alike(batch.tensors[region], x)
    return FewRows(tensors, batch.grouping, reader_of(region, batch))
