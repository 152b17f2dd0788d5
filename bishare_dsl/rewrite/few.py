"""What a region's program for few tokens calls: what takes its time is the calls of torch, not arithmetic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bishare_dsl.rewrite.island import is_unwatched
from bishare_dsl.rewrite.ops import autocasts

FEW = 16
"""How many tokens are few."""


def are_few(x: Any) -> bool:
    """Tell whether a region reads few tokens, with no gradients to find."""
    return (
        type(x) is Tensor
        and not torch.is_grad_enabled()
        and x.numel() <= FEW * x.shape[-1]
        and not torch.compiler.is_exporting()  # which is to hold for any number
        and not torch._C._are_functorch_transforms_active()  # which may refuse to write
        and not autocasts(x.device)
    )


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
    """Return what was written to ``flat(y)``, ``(tokens, d)``, in the shape and dtype of ``y``."""
    return y if flat.dtype is y.dtype else flat.to(y.dtype).view(y.shape)


def add_by_kernels(
    y: Tensor,
    x: Tensor,
    kernels: tuple[Tensor, Tensor],
    shared: tuple[Tensor, Tensor],
    blocks: tuple[int, int],
    scale: float,
) -> Tensor:
    """Add ``s (x A^T) B`` to ``y (tokens, d_out)`` in place, where A and B are each ``kernel (x) shared``.

    Args:
        x: ``(tokens, d_in)``.
        kernels: of A ``(b, d_in / size)``, of B ``(b, d_out / size)``.
        shared: of A and of B, ``(a, size)``.
        blocks: the columns of the kernels.
    """
    (k_a, k_b), (a, b) = kernels, shared
    if x.size(0) > 1:
        return y.addmm_(F.linear(x, torch.kron(k_a, a)), torch.kron(k_b, b), alpha=scale)
    # To make a factor takes longer than the product with it.
    z = F.linear(k_a.mm(x.view(blocks[0], -1)), a)
    y.view(blocks[1], -1).addmm_(k_b.t(), z.mm(b), alpha=scale)
    return y
