"""Tensors that FSDP2 has spread over processes: whole ones for a file, and back."""

from __future__ import annotations

from typing import Any

import torch


def gathered(value: Any) -> Any:
    """A tensor with all of its values, for which every process has to call this; anything else as it is."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def spread_like(value: Any, like: torch.Tensor) -> Any:
    """This process's part of a whole tensor, if ``like`` is spread and of its shape."""
    if not hasattr(like, "full_tensor") or not isinstance(value, torch.Tensor):
        return value
    if value.shape != like.shape:
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    # Every process has read the same file, so that none needs to send it.
    return distribute_tensor(
        value.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )
