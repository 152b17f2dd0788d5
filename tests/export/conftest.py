"""The adapted tiny models of the adapters' tests."""

import torch

from tests.adapter.conftest import adapted, ids

__all__ = ["adapted", "ids", "moved"]


def moved(model):
    """An adapted model whose every tensor is away from its start."""
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in model.bishare.tensors().values():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=random))
    return model
