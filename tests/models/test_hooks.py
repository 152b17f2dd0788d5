"""What accelerate and FSDP keep for themselves is known in one module."""

import re
from pathlib import Path

import bishare_dsl

PRIVATE = re.compile(
    r"_hf_hook|weights_map|full_tensor|_is_fsdp_managed_module|_old_forward|_original_forward"
    r"|_is_accelerate_prepared|_hf_peft_config_loaded|FSDPModule"
)


def test_private_names_stand_in_one_module():
    package = Path(bishare_dsl.__file__).parent
    found = {
        str(path.relative_to(package)): sorted(set(PRIVATE.findall(path.read_text())))
        for path in package.rglob("*.py")
    }
    named = {path: names for path, names in found.items() if names}
    assert list(named) == ["models/hooks.py"]
    # Each of them is still used: a name that is gone from there is gone from here.
    assert len(named["models/hooks.py"]) == PRIVATE.pattern.count("|") + 1
