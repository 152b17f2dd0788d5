"""Check the names of adapters and tasks."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

BASE = "__base__"
"""The name that PEFT gives to the rows of a mixed batch without an adapter."""

MAX_BYTES = 200
"""The longest name in bytes of UTF-8. File systems allow 255, including other parts of a folder's name."""

OF_MODULES = {"bishare", "bishare_tensors", "bishare_factors", "bishare_whole", "base_model"}
"""Names of the modules that bishare and PEFT put into an adapted model."""

# Adapters are keys of a `torch.nn.ModuleDict`, which rejects the names of its public attributes. They
# are listed here, because commands check names without torch; a test compares the list with torch.
_WORDS = """
    T_destination add_module apply bfloat16 buffers call_super_init children clear compile cpu cuda double
    dump_patches eval extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu
    items keys load_state_dict modules mtia named_buffers named_children named_modules named_parameters
    parameters pop register_backward_hook register_buffer register_forward_hook register_forward_pre_hook
    register_full_backward_hook register_full_backward_pre_hook register_load_state_dict_post_hook
    register_load_state_dict_pre_hook register_module register_parameter register_state_dict_post_hook
    register_state_dict_pre_hook requires_grad_ set_extra_state set_submodule share_memory state_dict to
    to_empty train training type update values xpu zero_grad
"""
_OF_TORCH = frozenset(_WORDS.split())


def name_fault(name: object, taken: Collection[str] = ()) -> str | None:
    """Return why an adapter or a task cannot have a name, or None if it can.

    Args:
        name: the user's name.
        taken: names of the model's modules and parameters, from `module_names`.
    """
    if not isinstance(name, str):
        return f"it is a {type(name).__name__}, not a text"
    if not name:
        return "it is empty"
    if not name.isprintable():
        return "it has a character that cannot be printed"
    if len(name.encode(errors="surrogatepass")) > MAX_BYTES:
        return f"it is longer than {MAX_BYTES} bytes"
    if wrong := next((one for one in "./\\:#" if one in name), None):
        return f"it has a `{wrong}`"
    if name != name.strip():
        return "it begins or ends with a space"
    if name == BASE:
        return "PEFT calls the model without an adapter so"
    if re.fullmatch(r"checkpoint-\d+", name):
        return "the folder of a checkpoint has such a name"
    if name in OF_MODULES or name in taken:
        return "a module or parameter of the model has this name"
    if name.startswith("_") or name in _OF_TORCH:
        return "a module of torch has a method or attribute of this name, or may have one"
    return None


def module_names(paths: Iterable[str]) -> frozenset[str]:
    """Return the names in the paths of a model's modules and parameters."""
    return frozenset(part for path in paths for part in path.split("."))
