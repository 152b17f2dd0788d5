"""The devices and processes that hold an adapter's tensors."""

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
    """Return the device of each tensor: that of the first site that uses it.

    In an offloaded layer only the base's tensors are offloaded; the adapter's stay on the CPU.
    """
    where = {path: _device(model, path) for path in dict.fromkeys(plan.first_site.values())}
    of_terms = {name: where[path] for name, path in plan.first_site.items()}
    return of_terms | {t.tensor: _device(model, t.parameter) for t in plan.trained}


def move_tensors(tensors: Mapping[str, torch.Tensor], where: Mapping[str, torch.device]) -> None:
    """Move tensors, with their gradients, to the devices that `devices` returns, in place."""
    for name, tensor in tensors.items():
        # Tensors on the meta device have no values to copy.
        if tensor.device != where[name] and not tensor.is_meta and where[name].type != "meta":
            tensor.data = tensor.data.to(where[name])
            if tensor.grad is not None:
                tensor.grad = tensor.grad.to(where[name])


def gather_tensors(plan: Plan, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the plan's tensors by name, detached and complete.

    Every process must call this, because it gathers FSDP2's sharded tensors.

    Raises:
        AdapterError: a tensor has no values in this process, or only a part of them (BS617).
    """
    # Parameters trained in full come from the base until then, and a plan alone has no base.
    present = (t for t in plan.tensors if t.init != "base" or t.name in tensors)
    return {t.name: _whole(t.name, t.shape, tensors[t.name]) for t in present}


def on_first_process(
    plan: Plan, tensors: Mapping[str, torch.Tensor], act: Callable[[dict[str, torch.Tensor]], T]
) -> T:
    """Call ``act`` with complete tensors and return its result; if they are sharded, only the first of all
    processes calls it.

    Raises:
        BishareError: ``act`` raised it, and all processes then raise it; or as `gather_tensors`.
    """
    values = gather_tensors(plan, tensors)
    if not any(map(is_sharded_tensor, tensors.values())):
        return act(values)
    from torch import distributed

    outcome: list[Any] = [None]
    if distributed.get_rank() == 0:
        try:
            outcome = [act(values)]
        except BishareError as error:
            outcome = [error]
    distributed.broadcast_object_list(outcome)
    if isinstance(outcome[0], BishareError):
        raise outcome[0]
    return outcome[0]  # type: ignore[no-any-return]


def _whole(name: str, shape: tuple[int, int], tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_meta:
        raise AdapterError(codes.NO_VALUES(name=name, reason="it is on the meta device"))
    tensor = gather(tensor).detach()
    if tuple(tensor.shape) != shape:
        reason = f"it is {tuple(tensor.shape)} on this process, and {shape} in the plan"
        raise AdapterError(codes.NO_VALUES(name=name, reason=reason))
    return tensor


def _device(model: nn.Module, path: str) -> torch.device:
    # Five times faster than `get_submodule`, which would dominate the time of a switch.
    site = model
    for name in path.split("."):
        if (child := site._modules.get(name)) is None:
            break  # An expert's weight belongs to the module of all experts.
        site = child
    held = (t for ts in (site._parameters, site._buffers) for t in ts.values() if t is not None)
    tensor = next(held, None)
    if tensor is None or is_offloaded(site):
        import torch

        return torch.device("cpu")
    return tensor.device
