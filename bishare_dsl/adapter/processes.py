"""A model whose parameters FSDP2 has spread over several processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from bishare_dsl.diagnostics import BishareError

if TYPE_CHECKING:
    import torch
    from torch import nn

    T = TypeVar("T")


def reshard(model: nn.Module) -> None:
    """Let the parameters of a model be the sharded ones again; without FSDP2, do nothing.

    After a forward FSDP2 may leave in their place what it gathered for it: copies that an optimizer never
    sees, rounded to the type of its mixed precision. No process waits for another here.
    """
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        from torch.distributed.fsdp import FSDPModule

        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def by_one(tensors: Mapping[str, torch.Tensor], act: Callable[[], T]) -> T:
    """What ``act`` gives. Where tensors are sharded, every process calls this and the first one acts.

    Raises:
        BishareError: ``act`` did, which all processes then do.
    """
    if not any(hasattr(tensor, "full_tensor") for tensor in tensors.values()):
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
