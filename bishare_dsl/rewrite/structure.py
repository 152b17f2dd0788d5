"""When the graph of one module fits another."""

from __future__ import annotations

import types
from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import nn

from bishare_dsl.models.hooks import ADDED
from bishare_dsl.models.inspect import ADAPTER, TENSORS
from bishare_dsl.rewrite.region import FACTORS
from bishare_dsl.rewrite.rewritten import base_class, has_own_forward
from bishare_dsl.rewrite.whole import WHOLE

# What every module has, and what accelerate adds: none of it is seen by a forward.
_BOOKKEEPING = frozenset(vars(nn.Module())) | ADDED
# Read at run time through the module, so that it may differ between modules with one graph.
_SYMBOLIC = frozenset({"layer_idx"})


def structure_key(module: nn.Module) -> Hashable:
    """Return a value that is equal for two modules only if one's traced graph is right for the other.

    It holds the class, whether the instance has a forward of its own, every attribute but
    `layer_idx`, and the same of all children. Weights do not
    count, only which of them there are; an attribute that cannot be compared counts as different
    unless it is the same object, as a configuration is. So keys are compared while their modules live.
    """
    return has_own_forward(module), *_describe(module)


def _describe(module: nn.Module, path: str = "") -> Iterator[Hashable]:
    base = base_class(type(module))
    yield path, base, base.forward
    for tensors in (module._parameters, module._buffers):
        yield tuple(name for name, tensor in tensors.items() if tensor is not None)
    for name, value in vars(module).items():
        if name not in _BOOKKEEPING and not (name in _SYMBOLIC and value is not None):
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
