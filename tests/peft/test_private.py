"""What is private to PEFT and used by `bishare_dsl.peft` is there, and is called as it was."""

import inspect
import re
from pathlib import Path

import pytest
from peft import PeftModel, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners import tuners_utils
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import (
    ModulesToSaveWrapper,
    register_peft_method,
    save_and_load,
    set_additional_trainable_modules,
)
from torch import nn
from transformers.utils import PushToHubMixin

import bishare_dsl
from bishare_dsl.adapted.handle import Handle
from bishare_dsl.adapted.tuner_layer import TunerLayer
from bishare_dsl.peft import BishareConfig, BishareModel
from bishare_dsl.peft.types import peft_type

TUNER = (
    "inject_adapter",
    "set_adapter",
    "_unload_and_optionally_merge",
    "_replace_module",
    "_mark_only_adapters_as_trainable",
    "_cast_adapter_dtype",
    "_create_and_replace",
    "_check_merge_allowed",
    "_get_adapter_state_dict",
    "_remove_adapter_name_from_key",
    "_remap_adapter_state_dict_for_load",
    "supports_lora_conversion",
)
LAYER = (
    "set_adapter",
    "set_requires_grad",
    "enable_adapters",
    "delete_adapter",
    "merge",
    "unmerge",
    "_move_adapter_to_device_of_base_layer",
    "supports_lora_conversion",
)
LAYER_VALUES = (
    "adapter_layer_names",
    "other_param_names",
    "weight",
    "bias",
    "disable_adapters",
    "active_adapter",
    "merged_adapters",
)


def overridden():
    for ours, theirs, names in ((BishareModel, BaseTuner, TUNER), (Handle, BaseTunerLayer, LAYER)):
        for name in names:
            yield pytest.param(ours, theirs, name, id=f"{theirs.__name__}.{name}")


@pytest.mark.parametrize(("ours", "theirs", "name"), [*overridden()])
def test_a_method_is_called_as_ours_can_be(ours, theirs, name):
    mine = inspect.signature(getattr(ours, name)).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in mine):
        assert callable(getattr(theirs, name))
        return
    wanted = [
        p.name
        for p in inspect.signature(getattr(theirs, name)).parameters.values()
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    assert [p.name for p in mine][: len(wanted)] == wanted


def test_no_name_of_ours_is_one_of_theirs_unknown_to_us():
    """A method that PEFT adds under a name of ours would be replaced by it, and nobody would notice."""
    for ours, theirs, known in (
        (BishareModel, BaseTuner, (*TUNER, "active_adapters")),
        (Handle, BaseTunerLayer, (*LAYER, *LAYER_VALUES)),
    ):
        names = {
            name for owner in (ours, TunerLayer) if issubclass(ours, owner) for name in vars(owner)
        }
        alike = names.intersection(dir(theirs)) - set(dir(nn.Module))
        assert alike - {"__abstractmethods__", "_abc_impl"} == set(known)


def test_types_of_methods_are_an_enum_of_text_that_takes_another():
    assert peft_type() is PeftType("BISHARE") is PeftType.BISHARE
    assert peft_type() in PeftType
    assert isinstance(peft_type(), str)
    assert peft_type().value == "BISHARE"
    assert PEFT_TYPE_TO_CONFIG_MAPPING[peft_type()] is BishareConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[peft_type()] is BishareModel


def test_functions_take_what_they_are_called_with():
    inspect.signature(register_peft_method).bind(name="n", config_cls=None, model_cls=None)
    inspect.signature(set_additional_trainable_modules).bind(
        model=None, peft_config=None, model_config=None, adapter_name="a", activate_adapter=True
    )
    inspect.signature(BaseTuner._unload_and_optionally_merge).bind(
        None, merge=True, progressbar=False, safe_merge=False, adapter_names=None
    )
    inspect.signature(tuners_utils.BaseTuner.get_model_config).bind(None)
    inspect.signature(tuners_utils.check_adapters_to_merge).bind(None, ["a"])
    inspect.signature(ModulesToSaveWrapper.set_adapter).bind(None, "a", inference_mode=False)
    inspect.signature(ModulesToSaveWrapper.delete_adapter).bind(None, "a", ["b"])


def test_a_forward_opens_the_hooks_of_the_tuner():
    source = inspect.getsource(PeftModel._enable_peft_forward_hooks)
    assert "self.base_model._enable_peft_forward_hooks(*args, **kwargs)" in source


def test_what_asks_for_the_keys_of_adapters_asks_the_function_that_is_replaced():
    for function in (
        save_and_load.get_base_model_state_dict,
        save_and_load.set_base_model_state_dict,
    ):
        assert "_get_adapter_state_dict_key_prefixes" in function.__code__.co_names


def test_pushing_uploads_a_folder_by_a_method_of_its_own():
    """Before it, the card of the adapter is written again: `push_to_hub` has put an empty one over it."""
    assert [*inspect.signature(PushToHubMixin._upload_modified_files).parameters][:2] == [
        "self",
        "working_dir",
    ]


PRIVATE = re.compile(
    r"_hf_hook|weights_map|full_tensor|_is_fsdp_managed_module|_old_forward|_original_forward"
    r"|_is_accelerate_prepared|_hf_peft_config_loaded|FSDPModule"
)


def test_what_accelerate_and_fsdp_keep_for_themselves_is_known_in_one_module():
    package = Path(bishare_dsl.__file__).parent
    found = {
        str(path.relative_to(package)): sorted(set(PRIVATE.findall(path.read_text())))
        for path in package.rglob("*.py")
    }
    named = {path: names for path, names in found.items() if names}
    assert list(named) == ["models/hooks.py"]
    # Each of them is still used: a name that is gone from there is gone from here.
    assert len(named["models/hooks.py"]) == PRIVATE.pattern.count("|") + 1
