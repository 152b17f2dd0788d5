"""Where an adapter's tensors are: on which devices, and on which processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from bishare_dsl.diagnostics import AdapterError, BishareError
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.models.hooks import gather, is_offloaded, is_sharded_tensor
from bishare_dsl.plan import Plan

if TYPE_CHECKING:
    import torch
    from torch import nn

    T = TypeVar("T")


def devices(plan: Plan, model: nn.Module) -> dict[str, torch.device]:
    """Return where each tensor goes: to the first site that uses it.

    Of an offloaded layer's tensors only the base's are offloaded, so the adapter's stay on the CPU.
    """
    sites = dict.fromkeys(plan.first_site.values())
    where = {path: _device(model, path) for path in sites}
    found = {name: where[path] for name, path in plan.first_site.items()}
    return found | {t.tensor: _device(model, t.parameter) for t in plan.trained}


def move_tensors(tensors: Mapping[str, torch.Tensor], where: Mapping[str, torch.device]) -> None:
    """Move tensors to where `devices` says that they go, in place, and their gradients with them."""
    for name, tensor in tensors.items():
        # On the meta device there are no values: neither could they come from there, nor must they go there.
        if tensor.device != where[name] and not tensor.is_meta and where[name].type != "meta":
            tensor.data = tensor.data.to(where[name])
            if tensor.grad is not None:
                tensor.grad = tensor.grad.to(where[name])


def gather_tensors(plan: Plan, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the plan's tensors by name, detached, each with all of its values.

    FSDP2's sharded tensors are gathered, for which every process has to call this.

    Raises:
        AdapterError: a tensor has no values here, or not all of them (BS617).
    """
    # What is trained in full is the base's until it is, and a plan alone has no base.
    present = (t for t in plan.tensors if t.init != "base" or t.name in tensors)
    return {t.name: _whole(t.name, t.shape, tensors[t.name].detach()) for t in present}


def on_first_process(tensors: Mapping[str, torch.Tensor], act: Callable[[], T]) -> T:
    """Return what ``act`` returns. Where tensors are sharded, all processes call this and the first one acts.

    Raises:
        BishareError: ``act`` did, which all processes then do.
    """
    if not any(map(is_sharded_tensor, tensors.values())):
        return act()
    from torch import distributed

    outcome: list[Any] = [None]
    if distributed.get_rank() == 0:
        try:
            outcome = [act()]
        except BishareError as error:
            outcome = [error]
    distributed.broadcast_object_list(outcome)
    if isinstance(outcome[0], BishareError):
        raise outcome[0]
    return outcome[0]  # type: ignore[no-any-return]


def _whole(name: str, shape: tuple[int, int], tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_meta:
        raise AdapterError(codes.NO_VALUES(name=name, reason="it is on the meta device"))
    tensor = gather(tensor)
    if tuple(tensor.shape) != shape:
        reason = f"it is {tuple(tensor.shape)} on this process, and {shape} in the plan"
        raise AdapterError(codes.NO_VALUES(name=name, reason=reason))
    return tensor


def _device(model: nn.Module, path: str) -> torch.device:
    # What `get_submodule` gives, in a fifth of the time: by it, this would be most of a switch's.
    site = model
    for name in path.split("."):
        if (child := site._modules.get(name)) is None:
            break  # An expert, whose weight its experts keep.
        site = child
    held = (t for ts in (site._parameters, site._buffers) for t in ts.values() if t is not None)
    tensor = next(held, None)
    if tensor is None or is_offloaded(site):
        import torch

        return torch.device("cpu")
    return tensor.device
