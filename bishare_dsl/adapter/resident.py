"""Where a parameter's values are: in its module, where accelerate keeps them, or on other processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import reduce
from typing import TYPE_CHECKING, cast

from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.plan import Plan

if TYPE_CHECKING:
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


def devices(plan: Plan, model: nn.Module) -> dict[str, torch.device]:
    """Where each tensor goes: to the first site that uses it.

    Of an offloaded layer's tensors only the base's are offloaded, so the adapter's stay on the CPU.
    """
    sites = dict.fromkeys(plan.first_site.values())
    where = {path: _device(model, path) for path in sites}
    return {name: where[path] for name, path in plan.first_site.items()}


def settle(tensors: Mapping[str, torch.Tensor], where: Mapping[str, torch.device]) -> None:
    """Move tensors to where `devices` says that they go, in place, and their gradients with them."""
    for name, tensor in tensors.items():
        # On the meta device there are no values: neither could they come from there, nor must they go there.
        if tensor.device != where[name] and not tensor.is_meta and where[name].type != "meta":
            tensor.data = tensor.data.to(where[name])
            if tensor.grad is not None:
                tensor.grad = tensor.grad.to(where[name])


def whole(plan: Plan, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The plan's tensors by name, detached, each with all of its values.

    FSDP2's sharded tensors are gathered, for which every process has to call this.

    Raises:
        AdapterError: a tensor has no values here, or not all of them (BS617).
    """
    return {t.name: _whole(t.name, t.shape, tensors[t.name].detach()) for t in plan.tensors}


def _whole(name: str, shape: tuple[int, int], tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_meta:
        raise AdapterError(codes.NO_VALUES(name=name, reason="it is on the meta device"))
    if callable(gather := getattr(tensor, "full_tensor", None)):
        tensor = gather()
    if tuple(tensor.shape) != shape:
        reason = f"it is {tuple(tensor.shape)} on this process, and {shape} in the plan"
        raise AdapterError(codes.NO_VALUES(name=name, reason=reason))
    return tensor


def _device(model: nn.Module, path: str) -> torch.device:
    # What `get_submodule` gives, in a fifth of the time: by it, this would be most of a switch's.
    site = reduce(
        lambda module, name: cast("nn.Module", module._modules[name]), path.split("."), model
    )
    held = (t for ts in (site._parameters, site._buffers) for t in ts.values() if t is not None)
    tensor = next(held, None)
    if tensor is None or is_offloaded(site):
        import torch

        return torch.device("cpu")
    return tensor.device


def _weight_maps(module: nn.Module) -> Iterator[Mapping[str, torch.Tensor]]:
    hook = vars(module).get("_hf_hook")  # Not `getattr`, which is slow where there is none.
    for part in getattr(hook, "hooks", (hook,)):
        if (values := getattr(part, "weights_map", None)) is not None:
            yield values
