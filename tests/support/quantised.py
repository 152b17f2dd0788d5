"""A quantised base without a quantiser: linear layers that keep bytes and a scale for each row."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

ModelT = TypeVar("ModelT", bound=nn.Module)


class Int8Linear(nn.Module):
    """A quantised linear as libraries write them: integers, a scale for each row, their own class."""

    scale: Tensor

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(1, keepdim=True).clamp(min=1e-6) / 127
        whole = (linear.weight.detach() / scale).round().to(torch.int8)
        self.weight = nn.Parameter(whole, requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * self.scale, self.bias)


def quantise(
    model: ModelT,
    chosen: Callable[[str], bool],
    make: Callable[[nn.Linear], nn.Module] = Int8Linear,
) -> ModelT:
    """Put quantised layers into a model, in the place of the plain linear layers whose paths are chosen."""
    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear and chosen(path):
            model.set_submodule(path, make(module))
    return model
