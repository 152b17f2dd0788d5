"""What a region's program for few tokens calls: what takes its time is the calls of torch, not arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bishare_dsl.rewrite.island import add, is_unwatched
from bishare_dsl.rewrite.ops import autocasts

FEW = 16
"""How many tokens of an adapter are few."""


def are_few(region: nn.Module, x: Any, adapters: int = 1) -> bool:
    """Tell whether a region reads few tokens of each adapter, with no gradients to find."""
    return (
        type(x) is Tensor
        and not torch.is_grad_enabled()
        and x.numel() <= FEW * adapters * x.shape[-1]
        and not torch.compiler.is_exporting()  # which is to hold for any number
        and not torch._C._are_functorch_transforms_active()  # which may refuse to write
        and not autocasts(x.device)
    )


def alike(tensors: Sequence[Tensor], x: Tensor) -> list[Tensor]:
    """Return tensors where ``x`` is, all of one dtype, as wide as that of ``x`` at least."""
    dtype, device = tensors[0].dtype, x.device
    if x.dtype is not dtype and x.dtype.is_floating_point:
        dtype = torch.promote_types(dtype, x.dtype)
    return [t if t.dtype is dtype and t.device == device else t.to(device, dtype) for t in tensors]


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """Call a layer of the base, and return what nobody else has: terms are added to it in place."""
    if type(layer) is nn.Linear and is_unwatched(layer):
        own = layer._parameters
        return F.linear(x, own["weight"], own["bias"])  # type: ignore[arg-type]
    return torch.clone(layer(x), memory_format=torch.contiguous_format)


def flat(x: Tensor, like: Tensor) -> Tensor:
    """Return ``(..., d)`` as ``(tokens, d)``, in the dtype of a tensor of the adapter.

    Of few tokens they are less than the factors, which therefore stay as they are.
    """
    return (x if x.dtype is like.dtype else x.to(like.dtype)).reshape(-1, x.shape[-1])


def unflat(flat: Tensor, y: Tensor) -> Tensor:
    """Return what was written to ``flat(y, like)`` in the shape and dtype of ``y``."""
    return y if flat.dtype is y.dtype else flat.to(y.dtype).view(y.shape)


def down(x: Tensor, a: Tensor) -> Tensor:
    """Compute ``x A^T``, of each adapter if there are several."""
    return F.linear(x, a) if a.dim() == 2 else torch.bmm(x, a.mT)


def add_by_kernels(
    y: Tensor,
    x: Tensor,
    kernels: tuple[Tensor, Tensor],
    shared: tuple[Tensor, Tensor],
    blocks: tuple[int, int],
    scale: float,
) -> Tensor:
    """Add ``s (x A^T) B`` to ``y (..., tokens, d_out)`` in place, where both are ``kernel (x) shared``.

    To make a factor takes longer than all of this. `serve.tiles` has the equations.

    Args:
        x: ``(..., tokens, d_in)``.
        kernels: of A ``(..., b, d_in / size)``, of B ``(..., b, d_out / size)``.
        shared: of A and of B, ``(..., a, size)``.
        blocks: the columns of the kernels.
    """
    (k_a, k_b), (a, b) = kernels, shared
    if x.dim() == 2:
        if x.size(0) > 1:
            return y.addmm_(F.linear(x, torch.kron(k_a, a)), torch.kron(k_b, b), alpha=scale)
        # To make a factor takes longer than the product with it.
        z = F.linear(k_a.mm(x.view(blocks[0], -1)), a)
        y.view(blocks[1], -1).addmm_(k_b.t(), z.mm(b), alpha=scale)
        return y
    adapters, tokens, size = *x.shape[:2], a.shape[2]
    inner = torch.bmm(k_a, in_tiles(x, size))  # (adapters, b, tokens size)
    if tokens == 1:
        u = torch.bmm(torch.bmm(inner, a.mT), b)
        add(y.view(adapters, -1, size), k_b.mT, u, scale)
    else:
        u = torch.bmm(torch.bmm(inner.view(adapters, -1, size), a.mT), b).view(inner.shape)
        found = torch.bmm(k_b.mT, u).view(adapters, -1, tokens, size)
        y.view(adapters, tokens, -1, size).add_(found.transpose(1, 2), alpha=scale)
    return y


def in_tiles(x: Tensor, size: int) -> Tensor:
    """Return ``x (..., n, d)`` as k tiles of ``size`` features, ``(..., k, n size)``."""
    if spare := -x.shape[-1] % size:
        x = F.pad(x, (0, spare))
    *rows, length, _ = x.shape
    if length == 1:
        return x.view(*rows, -1, size)
    return x.view(*rows, length, -1, size).transpose(-3, -2).flatten(-2)
