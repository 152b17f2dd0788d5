"""Where the values of a module's parameter are: in the module, or where accelerate keeps them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn


def resident(module: nn.Module, name: str) -> torch.Tensor | None:
    """The tensor that holds a parameter's values, so that writing into it changes the parameter.

    accelerate's offload leaves a parameter on the meta device and keeps its values in a map; the tensor
    in the map is returned if it is the map's own. One on disk is read afresh each time, and writing into
    what was read would change nothing: then the parameter is returned, still on the meta device.
    """
    parameter = module._parameters.get(name)
    if parameter is None or not parameter.is_meta:
        return parameter
    for values in _weight_maps(module):
        if name in values and values[name] is values[name]:
            return values[name]
    return parameter


def is_offloaded(module: nn.Module) -> bool:
    """Whether accelerate keeps the values of a module's parameters elsewhere."""
    return any(True for _ in _weight_maps(module))


def _weight_maps(module: nn.Module) -> Iterator[Mapping[str, torch.Tensor]]:
    hook = getattr(module, "_hf_hook", None)
    for part in getattr(hook, "hooks", (hook,)):
        if (values := getattr(part, "weights_map", None)) is not None:
            yield values
