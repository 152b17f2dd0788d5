"""What a rewritten forward adds to the base's: the leaves that apply factors.

Factors are trained in their own dtype, float32 as a rule, and applied in the activations'. Everything here is
out of place, so that a hook on a base linear keeps the output it was given.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from bishare_dsl.transforms.factor import DECODE_TOKENS, Factor


class Rows(Protocol):
    """Whose adapter each row of a mixed batch has, as a region that reads them knows it."""

    @property
    def adapters(self) -> int:
        """How many adapters there are."""
        ...

    @property
    def in_order(self) -> bool:
        """Whether rows come adapter by adapter, equally many of each."""
        ...

    def check(self, x: Tensor, /) -> None:
        """Refuse an input of which it cannot be known whose each row is."""
        ...

    def gather(self, x: Tensor, /) -> Tensor:
        """Sort ``(..., d)`` by adapter: ``(adapters, tokens, d)``."""
        ...

    def scatter(self, sorted_: Tensor, y: Tensor, /) -> Tensor:
        """Undo `gather`, in the shape of ``y``."""
        ...

    def spread(self, ids: Tensor, /) -> Tensor:
        """Repeat indices that all rows have in common for each row."""
        ...

    def repeat(self, y: Tensor, /) -> Tensor:
        """Repeat a ``y`` that all rows have in common for each row."""
        ...


class OfRows(NamedTuple):
    """A factor of each adapter of a mixed batch, ``(adapters, rows, side)``, and whose each row is.

    ``recompute`` makes it again for a backward; None where it is there anyway.
    """

    factor: Factor
    rows: Rows
    recompute: Callable[[], Factor] | None = None

    def dense(self) -> Tensor:
        """Return the factors of all adapters."""
        return self.factor.dense()


Applied = Factor | OfRows
"""A factor of one adapter, or of each of a mixed batch."""


def autocasts(device: torch.device) -> bool:
    """Tell whether autocast changes dtypes on a device now."""
    # First, what takes a tenth of the time: with one token this is felt.
    if not torch._C._is_any_autocast_enabled():
        return False
    kind = device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Open a block in which autocast leaves dtypes as they are."""
    return torch.autocast(device.type, enabled=False) if autocasts(device) else nullcontext()


def is_decode_step(x: Tensor, rows: Rows | None = None) -> bool:
    """Tell whether few tokens of each adapter are read, with no gradients to find."""
    return (
        type(x) is Tensor
        and not torch.is_grad_enabled()
        and x.numel() <= DECODE_TOKENS * x.shape[-1] * (1 if rows is None else rows.adapters)
        and not torch.compiler.is_exporting()  # which is to hold for any number
        and not torch._C._are_functorch_transforms_active()  # which may refuse to write
        and not autocasts(x.device)
    )


def down(x: Tensor, a: Applied) -> Tensor:
    """Compute ``x A^T``: ``(..., d_in)`` to ``(..., rows)``; of a mixed batch ``(tokens, rows)``, sorted.

    Raises:
        AdapterError: whose a row is cannot be known (BS682).
    """
    if isinstance(a, OfRows):
        a.rows.check(x)
        return torch.bmm(a.rows.gather(x), a.dense().to(x).mT).flatten(0, 1)
    return F.linear(x, a.dense().to(x))


def look_up(ids: Tensor, a: Applied, padding: int | None, keep: Tensor | None = None) -> Tensor:
    """Compute ``x A^T`` for the one-hot rows x of ``ids (...)``: columns of A, as `down` gives them.

    Args:
        ids: indices.
        a: the factor.
        padding: an index from which no gradient comes.
        keep: ``(...)``, what dropout has made of the ones in x.

    Raises:
        AdapterError: whose a row is cannot be known (BS682).
    """
    if not isinstance(a, OfRows):
        z = F.embedding(ids, a.dense().t(), padding)
        return z if keep is None else z * keep.unsqueeze(-1)
    places = a.rows.gather(a.rows.spread(ids).unsqueeze(-1))
    columns = a.dense().mT
    z = columns.gather(1, places.expand(-1, -1, columns.shape[-1]))
    if padding is not None:
        z = torch.where(places == padding, z.detach(), z)
    if keep is not None:
        z = z * a.rows.gather(a.rows.spread(keep).unsqueeze(-1))
    return z.flatten(0, 1)


def kept_ones(ids: Tensor, p: float, training: bool) -> Tensor | None:
    """Drop a fraction ``p`` of the ones of one-hot rows: give what is left of them, None where all is."""
    return F.dropout(torch.ones(ids.shape, device=ids.device), p) if training else None


def times(z: Tensor, scale: float | Tensor, weight: Tensor) -> Tensor:
    """Multiply ``z`` by the scale that an embedding has rounded to the dtype of its weight."""
    return z * (scale.to(weight).to(z) if isinstance(scale, Tensor) else scale)


def up(y: Tensor, z: Tensor, b: Applied, scale: float = 1.0) -> Tensor:
    """Compute ``y + s z B`` for ``y (..., d_out)`` and a ``z`` that `down` or `look_up` gives.

    One product that starts from ``y``: where ``B`` is zero the result is ``y``, bit for bit. In a mixed batch
    a ``y`` that all rows have in common becomes one for each.
    """
    # Autocast would round a float32 ``y`` that a quantised linear gives.
    with without_autocast(y.device):
        return add_dense(y, z, b.dense().to(y), scale, b.rows if isinstance(b, OfRows) else None)


def add_dense(y: Tensor, z: Tensor, b: Tensor, scale: float, rows: Rows | None) -> Tensor:
    """Compute ``y + s z B`` out of place, of a B ``(..., rows, d_out)`` in the dtype of ``y``."""
    if rows is None:
        flat, low = (t.reshape(-1, t.shape[-1]) for t in (y, z))
        return torch.addmm(flat, low.to(y), b, alpha=scale).view(y.shape)
    low = z.to(y).reshape(len(b), -1, z.shape[-1])
    y = rows.repeat(y)
    if rows.in_order:
        flat = y.reshape(len(b), -1, y.shape[-1])
        return torch.baddbmm(flat, low, b, alpha=scale).view(y.shape)
    return y.add(rows.scatter(torch.bmm(low, b), y), alpha=scale)


def cast(tensor: Tensor, x: Tensor) -> Tensor:
    """Return a tensor of the adapter in the dtype and on the device of the activations ``x``."""
    return tensor.to(x)


def add(y: Tensor, update: Tensor) -> Tensor:
    """Add ``y`` and a term's update, ``(..., d_out)`` both, in the dtype of ``y``."""
    return y + update.to(y)


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Drop a fraction ``p`` of the values of ``x`` and scale the others up, in training."""
    return F.dropout(x, p, training)
