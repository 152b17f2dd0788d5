"""Operations that a rewritten forward uses to apply factors.

Factors are trained in their own dtype, usually float32, and applied in the dtype of the activations.
Everything here is out of place, so that hooks on a base layer can keep its output.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bishare_dsl.rewrite.grouped_rows import RegionRows
from bishare_dsl.transforms.factor import DECODE_TOKENS, Factor


class OfRows(NamedTuple):
    """A factor for each adapter of a mixed batch, ``(adapters, rows, side)``, with the row assignment.

    ``recompute`` recomputes it in the backward; None if it is saved.
    """

    factor: Factor
    rows: RegionRows
    recompute: Callable[[], Factor] | None = None

    def dense(self) -> Tensor:
        """Return the dense factors of all adapters."""
        return self.factor.dense()


Applied = Factor | OfRows
"""A factor of one adapter, or of each adapter of a mixed batch."""


def autocasts(device: torch.device) -> bool:
    """Tell whether autocast is active on a device."""
    # Checked first: it takes a tenth of the time, which matters with one token.
    if not torch._C._is_any_autocast_enabled():
        return False
    kind = device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Disable autocast inside the block."""
    return torch.autocast(device.type, enabled=False) if autocasts(device) else nullcontext()


def is_decode_step(x: Tensor, rows: RegionRows | None = None) -> bool:
    """Tell whether each adapter has few tokens, and no gradients are needed."""
    return (
        type(x) is Tensor
        and not torch.is_grad_enabled()
        and x.numel()
        <= DECODE_TOKENS * x.shape[-1] * (1 if rows is None else rows.grouping.adapters)
        and not torch.compiler.is_exporting()  # an exported graph must hold for any number
        and not torch._C._are_functorch_transforms_active()  # in-place writes may be rejected
        and not autocasts(x.device)
    )


def down(x: Tensor, a: Applied) -> Tensor:
    """Compute ``x A^T``: ``(..., d_in)`` to ``(..., rows)``; in a mixed batch ``(tokens, rows)``, sorted.

    Raises:
        AdapterError: the adapter of a row is unknown (BS682).
    """
    if isinstance(a, OfRows):
        return torch.bmm(a.rows.gather(x), a.dense().to(x).mT).flatten(0, 1)
    return F.linear(x, a.dense().to(x))


def look_up(ids: Tensor, a: Applied, padding: int | None, keep: Tensor | None = None) -> Tensor:
    """Compute ``x A^T`` for one-hot rows x with indices ``ids (...)``: columns of A, in the form of `down`.

    Args:
        ids: indices.
        a: the factor.
        padding: an index without gradient.
        keep: ``(...)``, dropout applied to the ones of x.

    Raises:
        AdapterError: the adapter of a row is unknown (BS682).
    """
    if not isinstance(a, OfRows):
        z = F.embedding(ids, a.dense().t(), padding)
        return z if keep is None else z * keep.unsqueeze(-1)
    places = a.rows.grouping.gather(a.rows.spread(ids).unsqueeze(-1))
    columns = a.dense().mT
    z = columns.gather(1, places.expand(-1, -1, columns.shape[-1]))
    if padding is not None:
        z = torch.where(places == padding, z.detach(), z)
    if keep is not None:
        z = z * a.rows.grouping.gather(a.rows.spread(keep).unsqueeze(-1))
    return z.flatten(0, 1)


def kept_ones(ids: Tensor, p: float, training: bool) -> Tensor | None:
    """Return dropout with probability ``p`` of the ones in one-hot rows; None outside training."""
    return F.dropout(torch.ones(ids.shape, device=ids.device), p) if training else None


def times(z: Tensor, scale: float | Tensor, weight: Tensor) -> Tensor:
    """Multiply ``z`` by an embedding's scale, rounded to the dtype of its weight."""
    return z * (scale.to(weight).to(z) if isinstance(scale, Tensor) else scale)


def up(y: Tensor, z: Tensor, b: Applied, scale: float = 1.0) -> Tensor:
    """Compute ``y + s z B`` for ``y (..., d_out)`` and a ``z`` from `down` or `look_up`.

    This is one product that starts from ``y``: if ``B`` is zero the result is ``y``, bit for bit. In a
    mixed batch a ``y`` that all rows share is repeated for each.
    """
    # Autocast would round the float32 ``y`` of a quantised layer.
    with without_autocast(y.device):
        return add_dense(y, z, b.dense().to(y), scale, b.rows if isinstance(b, OfRows) else None)


def add_dense(y: Tensor, z: Tensor, b: Tensor, scale: float, rows: RegionRows | None) -> Tensor:
    """Compute ``y + s z B`` out of place, for B ``(..., rows, d_out)`` in the dtype of ``y``."""
    if rows is None:
        flat = y.reshape(-1, y.shape[-1])
        low = z.reshape(-1, z.shape[-1])
        return torch.addmm(flat, low.to(y), b, alpha=scale).view(y.shape)
    low = z.to(y).reshape(len(b), -1, z.shape[-1])
    y = rows.repeat(y)
    if rows.grouping.in_order:
        flat = y.reshape(len(b), -1, y.shape[-1])
        return torch.baddbmm(flat, low, b, alpha=scale).view(y.shape)
    return y.add(rows.grouping.scatter(torch.bmm(low, b), y), alpha=scale)


def cast(tensor: Tensor, x: Tensor) -> Tensor:
    """Return an adapter's tensor in the dtype and on the device of the activations ``x``."""
    return tensor.to(x)


def cast_constant(constant: Tensor, x: Tensor) -> Tensor:
    """Return a transform's constant on the device of the activations, and in their dtype if it is a float."""
    return constant.to(x) if constant.is_floating_point() else constant.to(x.device)


def add(y: Tensor, update: Tensor) -> Tensor:
    """Add ``y`` and a term's update, ``(..., d_out)`` both, in the dtype of ``y``."""
    return y + update.to(y)


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Drop a fraction ``p`` of the values of ``x`` and scale the others up, in training."""
    return F.dropout(x, p, training)
