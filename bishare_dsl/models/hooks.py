"""Access private state that accelerate, FSDP, transformers and `kernels` keep on modules and tensors.

Their private names occur in this module only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes.adapter import MIXED_REENTRANT

if TYPE_CHECKING:
    import torch
    from torch import nn

FORWARDS = ("_old_forward", "forward")
"""Attributes of an instance that hold a forward: the forward that accelerate's hook wraps, and the wrapper.
After the hook is removed, `forward` is the bound method of the class."""

ADDED = frozenset({"_hf_hook", *FORWARDS})
"""The attributes that an accelerate hook adds to a module."""

KERNELS = frozenset({"_kernel_funcs", "_kernel_repo"})
"""What `kernels` keeps on a module: its wrappers of functions that kernels may replace, and where a kernel
came from. Such functions are called by name, so no graph depends on either."""

_PREPARED = ("forward", "_original_forward", "_is_accelerate_prepared")


HAS_ADAPTER = "_hf_peft_config_loaded"
"""With this attribute transformers knows that a model has an adapter: a quantised base may train, and
gradients reach the inputs of recomputed layers."""


FUSED_HEAD = "fused_lm_head"
"""The argument with which TRL requests a loss that is computed from the weight of the head."""

_OF_BASE = (
    *("max_shard_size", "variant", "save_peft_format", "save_original_format"),
    "distributed_checkpoint",
)
"""Arguments of `save_pretrained` that specify how a base is written."""


@contextmanager
def uploaded(
    model: Any, folder: str | os.PathLike[str], settings: Mapping[str, Any]
) -> Iterator[None]:
    """Upload the files that a block writes to a folder, as `save_pretrained` of transformers does.

    Args:
        model: has the methods of `PushToHubMixin`.
        folder: names the repository, unless ``repo_id`` is in ``settings``.
        settings: arguments of `save_pretrained`: ``token``, ``private``, ``commit_message`` and so on.
    """
    from huggingface_hub import create_repo

    how = {
        n: v for n, v in settings.items() if n not in _OF_BASE and (n != "token" or v is not None)
    }
    uploading = {"commit_message": how.pop("commit_message", None)}
    repository = how.pop("repo_id", os.fspath(folder).split(os.path.sep)[-1])
    uploading["create_pr"] = how.pop("create_pr", False)
    Path(folder).mkdir(parents=True, exist_ok=True)
    repository = create_repo(repository, exist_ok=True, **how).repo_id
    before = model._get_files_timestamps(folder)
    yield
    model._upload_modified_files(folder, repository, before, token=how.get("token"), **uploading)


def own_forward(module: nn.Module) -> Any:
    """Return the forward set on an instance, below accelerate's hook, or None if its class decides."""
    return next((vars(module)[name] for name in FORWARDS if name in vars(module)), None)


def is_offloaded(module: nn.Module) -> bool:
    """Return whether accelerate offloads the values of a module's parameters."""
    return any(True for _ in _weight_maps(module))


def resident_tensor(module: nn.Module, name: str) -> torch.Tensor | None:
    """Return the tensor that holds a parameter's values. Writing into it changes the parameter.

    accelerate's offload leaves the parameter on the meta device and keeps its values in a map. If the
    map holds a tensor in memory, that tensor is returned. A tensor on disk is read again each time, so
    writing to it would have no effect: then the parameter on the meta device is returned.
    """
    parameter = module._parameters.get(name)
    if parameter is None or not parameter.is_meta:
        return parameter
    for values in _weight_maps(module):
        if name in values and values[name] is values[name]:
            return values[name]
    return parameter


def forget_loading(model: nn.Module) -> None:
    """Drop the weight conversions that transformers would undo when it saves a quantised model.

    Newer versions of transformers drop them when a model is dequantised; older ones do not.
    """
    vars(model).pop("_weight_conversions", None)


@contextmanager
def undo_prepare(model: nn.Module) -> Iterator[None]:
    """Remove the autocast wrapper that accelerate puts around the model's `forward` inside the block.

    A second run would otherwise wrap it again, or not at all.
    """
    before = {name: vars(model)[name] for name in _PREPARED if name in vars(model)}
    try:
        yield
    finally:
        for name in _PREPARED:
            vars(model).pop(name, None)
        vars(model).update(before)


# Recomputed layers ------------------------------------------------------------------------------------

_RECOMPUTES = "_gradient_checkpointing_func"


class Recompute:
    """Call a layer with transformers' checkpointing function, and open a block around its recomputation.

    Args:
        function: `torch.utils.checkpoint.checkpoint`, or a wrapper of it.
        block: called with each forward; returns the block for the recomputation, or None.
    """

    def __init__(
        self, function: Any, block: Callable[[], AbstractContextManager[None] | None]
    ) -> None:
        self.function = function
        self.block = block

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if (block := self.block()) is None:
            return self.function(*args, **kwargs)
        return self.function(*args, **kwargs, context_fn=lambda: (nullcontext(), block))


def recompute_within(
    model: nn.Module, block: Callable[[], AbstractContextManager[None] | None]
) -> None:
    """Recompute checkpointed layers inside a block during the backward pass.

    Raises:
        AdapterError: the first run has no gradients, because of ``use_reentrant=True`` (BS689).
    """
    for module in model.modules():
        function = vars(module).get(_RECOMPUTES)
        if function is None or not getattr(module, "gradient_checkpointing", False):
            continue
        if getattr(function, "keywords", {}).get("use_reentrant"):
            raise AdapterError(MIXED_REENTRANT())
        if not isinstance(function, Recompute):
            vars(module)[_RECOMPUTES] = Recompute(function, block)


def forget_recompute(model: nn.Module) -> None:
    """Undo `recompute_within`."""
    for module in model.modules():
        if isinstance(function := vars(module).get(_RECOMPUTES), Recompute):
            vars(module)[_RECOMPUTES] = function.function


# FSDP -----------------------------------------------------------------------------------------------


def is_sharded(module: nn.Module) -> bool:
    """Return whether FSDP manages the parameters of a module."""
    return bool(vars(module).get("_is_fsdp_managed_module", False))


def is_sharded_class(cls: type[nn.Module]) -> bool:
    """Return whether FSDP2 created a class from a module's class."""
    from torch.distributed.fsdp import FSDPModule

    return issubclass(cls, FSDPModule)


def reshard(model: nn.Module) -> None:
    """Restore the sharded parameters of a model. Do nothing without FSDP2.

    After a forward, FSDP2 may leave the gathered parameters in place: copies that an optimizer does not see,
    rounded to the mixed-precision dtype. Processes do not wait for each other here.
    """
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        from torch.distributed.fsdp import FSDPModule

        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def is_sharded_tensor(tensor: object) -> bool:
    """Return whether a tensor's values are sharded over processes, by FSDP2 or by DeepSpeed's ZeRO-3."""
    return hasattr(tensor, "full_tensor") or is_partitioned(tensor)


def is_partitioned(tensor: object) -> bool:
    """Return whether ZeRO-3 manages a parameter, gathered at the moment or not."""
    return hasattr(tensor, "ds_shape")


def full_shape(parameter: torch.Tensor) -> tuple[int, ...]:
    """Return the whole shape of a parameter, which ZeRO-3 replaces by an empty tensor of shape ``(0,)``."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def gather(value: Any) -> Any:
    """Return a tensor with all of its values. Every process must call this; non-tensors are unchanged.

    Pass a parameter itself: a view of it lacks the attributes by which ZeRO-3 gathers it.
    """
    if is_partitioned(value):
        from deepspeed import zero

        with zero.GatheredParameters([value]):
            return value.detach().clone()
    return value.full_tensor() if is_sharded_tensor(value) else value


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return the part of a tensor that this process holds."""
    part: torch.Tensor = cast("Any", tensor)
    return part.to_local() if hasattr(part, "to_local") else part


def _weight_maps(module: nn.Module) -> Iterator[Mapping[str, torch.Tensor]]:
    hook = vars(module).get("_hf_hook")
    for part in getattr(hook, "hooks", (hook,)):
        if (values := getattr(part, "weights_map", None)) is not None:
            yield values
