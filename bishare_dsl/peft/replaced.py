"""Everything that importing `bishare_dsl.peft` replaces in PEFT and transformers, as one list.

`tests/peft/test_replaced.py` compares the list with what an import changes, and with docs/peft.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import peft
from peft import (
    PeftModel,
    PeftModelForQuestionAnswering,
    PeftModelForSequenceClassification,
    PeftModelForTokenClassification,
    helpers,
    mapping_func,
    optimizers,
)
from peft.config import PeftConfigMixin
from peft.optimizers import lorafa, loraplus
from peft.tuners.lora import arrow
from peft.utils import save_and_load
from torch import nn
from transformers.integrations.peft import PeftAdapterMixin

from bishare_dsl.adapted.handle import Handle, in_model
from bishare_dsl.diagnostics import AdapterError, ModelError
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.diagnostics.codes.rewrite import ADAPTED_ALREADY
from bishare_dsl.models.site import TENSORS
from bishare_dsl.peft.config import BishareConfig
from bishare_dsl.peft.doors import (
    check_first,
    copy_config,
    fill_after,
    hand_on_config,
    hand_on_tensors,
    refuse_library,
)
from bishare_dsl.peft.method import check_new
from bishare_dsl.peft.whole import run_whole, whole_method

_Function = Callable[..., Any]


@dataclass(frozen=True)
class Replacement:
    """A function that is replaced; for other methods' models it does what it did.

    Attributes:
        owner: the module or class that has it.
        name: its name there.
        wrap: returns the replacement of the function that it receives.
    """

    owner: Any
    name: str
    wrap: Callable[[_Function], _Function]

    def put(self) -> None:
        """Replace the function."""
        original = vars(self.owner).get(self.name) or getattr(self.owner, self.name)
        if isinstance(original, classmethod):
            setattr(self.owner, self.name, classmethod(self.wrap(original.__func__)))
        else:
            setattr(self.owner, self.name, self.wrap(original))


def _refused(help: str) -> Callable[[_Function], _Function]:
    """Make a wrapper that refuses models with adapters of bishare, whose tensors have no names of PEFT.

    The function would find nothing, and some would say nothing (BS669).
    """

    def wrap(theirs: _Function) -> _Function:
        @functools.wraps(theirs)
        def call(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if in_model(model) is not None:
                raise AdapterError(codes.LORA_ALONE(function=theirs.__name__, help=help))
            return theirs(model, *args, **kwargs)

        return call

    return wrap


_NO_LORA_FA = _refused("write `freeze A` in the shares")
_NO_LORA_PLUS = _refused("give the optimizer a group for B: docs/peft.md shows it")
_NO_ARROW = _refused("`bishare convert` writes each as a LoRA of PEFT: route between these")
_NO_RESCALE = _refused("`model.bishare.set_scale(name, 0.5)` scales an adapter, and 1.0 undoes it")


def _prefixes_beside(others: Callable[[Any], set[str]]) -> _Function:
    """Make PEFT recognise the adapters' tensors, since it searches only for its own layers."""

    def prefixes(model: Any) -> set[str]:
        paths = (path for path, _ in model.base_model.model.named_modules())
        return others(model) | {path for path in paths if path.rpartition(".")[2] == TENSORS}

    return prefixes


def _with_card(upload: _Function) -> _Function:
    """Rewrite the adapter's card: `push_to_hub` of transformers overwrites it with an empty one."""

    def uploads(model: PeftModel, working_dir: str, *args: Any, **kwargs: Any) -> Any:
        if isinstance(config := model.peft_config.get("default"), BishareConfig):
            config.write_card(working_dir)
        return upload(model, working_dir, *args, **kwargs)

    return uploads


def _changing(theirs: _Function) -> _Function:
    """Let a function that changes a model's adapters do it wholly or not at all."""

    @functools.wraps(theirs)
    def change(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if theirs.__name__ == "get_peft_model" and args and isinstance(args[0], str):
            raise TypeError(f"write `get_peft_model(model, BishareConfig(spec={args[0]!r}))`")
        ours = any(isinstance(value, BishareConfig) for value in (*args, *kwargs.values()))
        if ours and theirs.__name__ == "get_peft_model" and isinstance(model, PeftModel):
            raise ModelError(ADAPTED_ALREADY())
        act = partial(theirs, model, *args, **kwargs)
        return run_whole(model, act) if ours or in_model(model) is not None else act()

    return change


def _disabling(theirs: _Function) -> _Function:
    """Let a block that runs the base end wholly, as the handle's does."""

    @functools.wraps(theirs)
    def disable_adapter(model: PeftModel) -> Any:
        handle = in_model(model)
        return theirs(model) if handle is None else handle.disable_adapter()

    return disable_adapter


_BOTH = ("add_adapter", "delete_adapter", "set_adapter")
_CHANGING_OF_PEFT = (*_BOTH, "set_requires_grad")
_CHANGING_OF_TRANSFORMERS = (*_BOTH, "disable_adapters", "enable_adapters")
_ADDING = ("__init__", "add_adapter")
_WITH_HEADS = (
    PeftModelForSequenceClassification,
    PeftModelForTokenClassification,
    PeftModelForQuestionAnswering,
)

REPLACED = (
    Replacement(peft, "get_peft_model", _changing),
    Replacement(mapping_func, "get_peft_model", _changing),
    Replacement(PeftModel, "from_pretrained", check_first),
    Replacement(PeftModel, "load_adapter", check_first),
    Replacement(PeftConfigMixin, "from_json_file", hand_on_config),
    Replacement(save_and_load, "safe_load_file", hand_on_tensors),
    Replacement(PeftModel, "disable_adapter", _disabling),
    *(Replacement(PeftModel, name, _changing) for name in _CHANGING_OF_PEFT),
    *(Replacement(k, name, copy_config) for name in _ADDING for k in _WITH_HEADS),
    Replacement(PeftModel, "create_or_update_model_card", refuse_library),
    Replacement(PeftModel, "_upload_modified_files", _with_card),
    Replacement(PeftAdapterMixin, "load_adapter", partial(fill_after, check_state=check_new)),
    *(Replacement(PeftAdapterMixin, name, _changing) for name in _CHANGING_OF_TRANSFORMERS),
    Replacement(save_and_load, "_get_adapter_state_dict_key_prefixes", _prefixes_beside),
    Replacement(optimizers, "create_loraplus_optimizer", _NO_LORA_PLUS),
    Replacement(loraplus, "create_loraplus_optimizer", _NO_LORA_PLUS),
    Replacement(optimizers, "create_lorafa_optimizer", _NO_LORA_FA),
    Replacement(lorafa, "create_lorafa_optimizer", _NO_LORA_FA),
    Replacement(arrow, "check_loaded_lora_compatibility_arrow", _NO_ARROW),
    Replacement(helpers, "rescale_adapter_scale", _NO_RESCALE),
)
"""In the order of docs/peft.md, which says what each does for adapters of bishare."""

_OF_THE_HANDLE = (
    *("_set_enabled", "add", "delete_adapter", "merge", "merge_and_unload"),
    *("set_adapter", "set_requires_grad", "set_scale", "unload", "unmerge"),
)
for name in _OF_THE_HANDLE:
    setattr(Handle, name, whole_method(getattr(Handle, name)))
