"""What `save_pretrained` of an adapted model writes: the adapter, as transformers does for PEFT's.

transformers and its Trainer write all tensors that a model has, unless PEFT has put its own there. So the
name on the instance, and nothing of its class, leads through here. The function is of this module and
knows its model as an argument, so that copies and pickles of a model have their own.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from bishare_dsl.models.hooks import HAS_ADAPTER

if TYPE_CHECKING:
    from torch import nn

_NAME = "save_pretrained"


def save_adapter_alone(model: nn.Module) -> None:
    """Let a model of transformers save its adapter, unless somebody else looks after its saving."""
    if hasattr(model, _NAME):
        vars(model).setdefault(_NAME, partial(_save, model))
        vars(model).setdefault(HAS_ADAPTER, True)


def forget_saving(model: nn.Module) -> None:
    """Undo `save_adapter_alone`."""
    kept = vars(model).get(_NAME)
    if isinstance(kept, partial) and kept.func is _save:
        del vars(model)[_NAME]
        vars(model).pop(HAS_ADAPTER, None)


def _save(
    model: Any,
    save_directory: Any,
    is_main_process: bool = True,
    state_dict: Any = None,
    push_to_hub: bool = False,
    **settings: Any,
) -> None:
    """Write the adapter to a folder; what says how a base is written, such as ``max_shard_size``, is moot."""
    if push_to_hub:
        model.push_to_hub(settings.get("repo_id") or str(save_directory))
    if is_main_process:
        model.bishare.save_pretrained(save_directory, state_dict=state_dict)
