"""What a rewritten forward adds to the base's: the leaves that apply effective factors.

Factors are trained in their own dtype, float32 as a rule, and applied in the activations'. Everything is
out of place, so that a hook on a base linear keeps the output it was given.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class FactorOfRows(Protocol):
    """An effective factor of each adapter of a mixed batch, which knows whose each row is."""

    @property
    def factor(self) -> Tensor:
        """Those of all adapters, ``(adapters, rows, width)``."""
        ...

    @property
    def in_order(self) -> bool:
        """Whether rows come adapter by adapter, equally many of each."""
        ...

    @property
    def again(self) -> Callable[[], Tensor] | None:
        """What makes it again for a backward, if it need not be kept."""
        ...

    def checked(self, x: Tensor, /) -> Tensor:
        """Return `factor`, for what is known to have the rows of a call."""
        ...

    def down(self, x: Tensor, /) -> Tensor: ...

    def up(self, y: Tensor, z: Tensor, /) -> Tensor: ...

    def look_up(self, ids: Tensor, padding: int | None, keep: Tensor | None, /) -> Tensor: ...


Factor = Tensor | FactorOfRows
"""An effective factor of one adapter, or of each of a mixed batch."""


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


def down(x: Tensor, a: Factor) -> Tensor:
    """Compute ``x A^T``: ``(..., d_in)`` and ``(rows, d_in)`` to ``(..., rows)``."""
    return F.linear(x, a.to(x)) if isinstance(a, Tensor) else a.down(x)


def look_up(ids: Tensor, a: Factor, padding: int | None, keep: Tensor | None = None) -> Tensor:
    """Compute ``x A^T`` for the one-hot rows x of ``ids (...)``: columns of A, ``(..., rows)``.

    Args:
        ids: indices.
        a: the factor, ``(rows, d_in)``.
        padding: an index from which no gradient comes.
        keep: ``(...)``, what dropout has made of the ones in x.
    """
    if not isinstance(a, Tensor):
        return a.look_up(ids, padding, keep)
    z = F.embedding(ids, a.t(), padding)
    return z if keep is None else z * keep.unsqueeze(-1)


def kept_ones(ids: Tensor, p: float, training: bool) -> Tensor | None:
    """Drop a fraction ``p`` of the ones of one-hot rows: give what is left of them, None where all is."""
    return F.dropout(torch.ones(ids.shape, device=ids.device), p) if training else None


def times(z: Tensor, scale: float | Tensor, weight: Tensor) -> Tensor:
    """Multiply ``z`` by the scale that an embedding has rounded to the dtype of its weight."""
    return z * (scale.to(weight).to(z) if isinstance(scale, Tensor) else scale)


def up(y: Tensor, z: Tensor, b: Factor, scale: float = 1.0) -> Tensor:
    """Compute ``y + s z B``: ``(..., d_out)``, ``(..., rows)`` and ``(rows, d_out)`` to ``(..., d_out)``.

    One product that starts from ``y``: where ``B`` is zero the result is ``y``, bit for bit.
    """
    # Autocast would round a float32 ``y`` that a quantised linear gives.
    with without_autocast(y.device):
        if not isinstance(b, Tensor):
            return b.up(y, z)
        flat, rows = (t.reshape(-1, t.shape[-1]) for t in (y, z))
        return torch.addmm(flat, rows.to(y), b.to(y), alpha=scale).view(y.shape)


def cast(tensor: Tensor, x: Tensor) -> Tensor:
    """Return a tensor of the adapter in the dtype and on the device of the activations ``x``."""
    return tensor.to(x)


def add(y: Tensor, update: Tensor) -> Tensor:
    """Add ``y`` and a term's update, ``(..., d_out)`` both, in the dtype of ``y``."""
    return y + update.to(y)


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Drop a fraction ``p`` of the values of ``x`` and scale the others up, in training."""
    return F.dropout(x, p, training)
