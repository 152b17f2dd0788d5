"""What accelerate, FSDP and transformers keep on modules and tensors: private names of theirs, here alone."""

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
    from transformers import PreTrainedModel

FORWARDS = ("_old_forward", "forward")
"""Where on an instance accelerate keeps a forward: the one that its hook wraps, and the wrapper. After the
hook is removed `forward` is the class's own, bound."""

ADDED = frozenset({"_hf_hook", *FORWARDS})
"""The attributes that an accelerate hook adds to a module."""

_PREPARED = ("forward", "_original_forward", "_is_accelerate_prepared")


HAS_ADAPTER = "_hf_peft_config_loaded"
"""By this attribute transformers knows that a model has an adapter: that a quantised base may train, and that
gradients are to reach the inputs of layers that are computed again.
"""


FUSED_HEAD = "fused_lm_head"
"""The argument by which TRL asks a forward for a loss that is computed from the weight of the head."""

_OF_BASE = (
    *("max_shard_size", "variant", "save_peft_format", "save_original_format"),
    "distributed_checkpoint",
)
"""Arguments of `save_pretrained` that specify how a base is written."""


@contextmanager
def uploaded(
    model: Any, folder: str | os.PathLike[str], settings: Mapping[str, Any]
) -> Iterator[None]:
    """Upload what a block writes to a folder, by the calls of the `save_pretrained` of transformers.

    Args:
        model: has the methods of `PushToHubMixin`.
        folder: its name is that of the repository, unless ``repo_id`` is in ``settings``.
        settings: of `save_pretrained`: ``token``, ``private``, ``commit_message`` and so on.
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
    """Return the forward that an instance has for itself, below accelerate's hook; None where it has none."""
    return next((vars(module)[name] for name in FORWARDS if name in vars(module)), None)


def is_offloaded(module: nn.Module) -> bool:
    """Tell whether accelerate keeps the values of a module's parameters elsewhere."""
    return any(True for _ in _weight_maps(module))


def resident_tensor(module: nn.Module, name: str) -> torch.Tensor | None:
    """Return the tensor that holds a parameter's values, so that writing into it changes the parameter.

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


def forget_loading(model: nn.Module) -> None:
    """Drop what transformers turned around, when it loaded a quantised model, and turns back when it saves.

    Newer versions of it do so themselves when a model is not quantised any more; 5.4 does not.
    """
    vars(model).pop("_weight_conversions", None)


@contextmanager
def undo_prepare(model: nn.Module) -> Iterator[None]:
    """Take off, after a block, what accelerate has put round the forward of a model in it.

    It wraps autocast round `forward`. A second run would wrap it again, or not at all.
    """
    before = {name: vars(model)[name] for name in _PREPARED if name in vars(model)}
    try:
        yield
    finally:
        for name in _PREPARED:
            vars(model).pop(name, None)
        vars(model).update(before)


def uses_flash_attention(model: PreTrainedModel) -> bool:
    """Tell whether a model computes attention by a kernel that takes no mask."""
    return "flash" in (model.config._attn_implementation or "")


# Layers that are computed again -----------------------------------------------------------------------

_RECOMPUTES = "_gradient_checkpointing_func"


class Recompute:
    """Calls a layer by what transformers would call it by, and opens a block round what is run again.

    Args:
        function: `torch.utils.checkpoint.checkpoint`, or what leads to it.
        block: returns, when the layer is called, the block for the later run, or None.
    """

    def __init__(
        self, function: Any, block: Callable[[], AbstractContextManager[None] | None]
    ) -> None:
        self.function, self.block = function, block

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if (block := self.block()) is None:
            return self.function(*args, **kwargs)
        return self.function(*args, **kwargs, context_fn=lambda: (nullcontext(), block))


def recompute_within(
    model: nn.Module, block: Callable[[], AbstractContextManager[None] | None]
) -> None:
    """Let layers whose activations are computed again for the backward be so in a block.

    Raises:
        AdapterError: they run without gradients at first, by ``use_reentrant=True`` (BS689).
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
    """Tell whether FSDP manages the parameters of a module."""
    return bool(vars(module).get("_is_fsdp_managed_module", False))


def is_sharded_class(cls: type[nn.Module]) -> bool:
    """Tell whether a class is one that FSDP2 has made over a module's own."""
    from torch.distributed.fsdp import FSDPModule

    return issubclass(cls, FSDPModule)


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


def is_sharded_tensor(tensor: object) -> bool:
    """Tell whether a tensor's values are spread over several processes."""
    return hasattr(tensor, "full_tensor")


def gather(value: Any) -> Any:
    """Return a tensor with all of its values, for which every process calls this; anything else as it is."""
    return value.full_tensor() if is_sharded_tensor(value) else value


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return the values of a tensor that this process has."""
    part: torch.Tensor = cast("Any", tensor).to_local() if is_sharded_tensor(tensor) else tensor
    return part


def _weight_maps(module: nn.Module) -> Iterator[Mapping[str, torch.Tensor]]:
    hook = vars(module).get("_hf_hook")
    for part in getattr(hook, "hooks", (hook,)):
        if (values := getattr(part, "weights_map", None)) is not None:
            yield values
