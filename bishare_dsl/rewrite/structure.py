"""Decide whether the graph of one module fits another."""

from __future__ import annotations

import types
from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import nn

from bishare_dsl.models.hooks import ADDED, KERNELS
from bishare_dsl.models.site import ADAPTER, TENSORS
from bishare_dsl.rewrite.region import FACTORS
from bishare_dsl.rewrite.rewritten import base_class, has_own_forward
from bishare_dsl.rewrite.whole import WHOLE

# Attributes that every module has, or that accelerate and `kernels` add; no traced forward reads them.
_BOOKKEEPING = frozenset(vars(nn.Module())) | ADDED | KERNELS


def structure_key(module: nn.Module) -> Hashable:
    """Return a value that is equal for two modules only if the graph of one is correct for the other.

    It contains the class, whether the instance overrides the forward, every attribute but `layer_idx`,
    and the same of all children. Of the weights only their presence counts. Other objects, such as
    configurations, are compared by identity, so compare keys only while their modules exist.
    """
    return has_own_forward(module), *_describe(module)


def _describe(module: nn.Module, path: str = "") -> Iterator[Hashable]:
    base = base_class(type(module))
    yield path, base, base.forward
    for tensors in (module._parameters, module._buffers):
        yield tuple(name for name, tensor in tensors.items() if tensor is not None)
    for name, value in vars(module).items():
        # A `layer_idx` is read from the module at run time, so it may differ.
        if name not in _BOOKKEEPING and (name != "layer_idx" or value is None):
            yield name, _comparable(value)
    for name, child in module._modules.items():
        if name in (ADAPTER, TENSORS, FACTORS, WHOLE):
            continue  # the adapter of an earlier compilation is not part of the forward
        if child is None:
            yield f"{path}.{name}", None
        else:
            yield from _describe(child, f"{path}.{name}")


def _comparable(value: Any) -> Hashable:
    match value:
        case bool() | int() | float() | str() | bytes() | None:
            return type(value), repr(value)
        case torch.dtype() | torch.device() | types.FunctionType() | type():
            return value
        case tuple() | list():
            return type(value), tuple(map(_comparable, value))
        case _:
            return type(value), id(value)
