"""A quantised base without a quantiser: linear layers with int8 weights and a scale per row."""

import torch
from torch import nn


class Int8Linear(nn.Module):
    """A quantised linear layer as in libraries: integers, a scale per row, a separate class."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(1, keepdim=True).clamp(min=1e-6) / 127
        whole = (linear.weight.detach() / scale).round().to(torch.int8)
        self.weight = nn.Parameter(whole, requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x):
        return nn.functional.linear(x, self.weight * self.scale, self.bias)


def quantise(model, chosen, make=Int8Linear):
    """Replace the linear layers with the chosen paths by quantised layers."""
    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear and chosen(path):
            model.set_submodule(path, make(module))
    return model
