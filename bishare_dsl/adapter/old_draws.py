"""Draw the frozen tensors of adapters of bishare 0.1 and 0.2, as torch does."""

from __future__ import annotations

import hashlib

import torch

from bishare_dsl.adapter.counter import distribution
from bishare_dsl.plan import Tensor


def draw_by_torch(tensor: Tensor, seed: int) -> torch.Tensor:
    """Draw what bishare 0.2 drew as the first values of a tensor, float32 on the CPU."""
    values = torch.empty(tensor.shape, dtype=torch.float32, device="cpu")
    digest = hashlib.sha256(f"{seed}:{tensor.like or tensor.name}".encode()).digest()
    random = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    [(kind, amount)] = distribution(tensor).items()
    if kind == "constant":
        return values.fill_(amount)
    if kind == "uniform":
        return values.uniform_(*amount, generator=random)
    if kind == "normal":
        return values.normal_(0.0, amount, generator=random)
    chosen = torch.randperm(amount, generator=random)[: len(values)]
    return values.copy_(torch.stack((chosen // 256, chosen % 256), 1))
