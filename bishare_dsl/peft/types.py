"""The name of the method in PEFT.

This uses a private name: it adds a member to PEFT's enum `PeftType`. `tests/peft/test_private.py` detects
a change.
"""

from __future__ import annotations

from peft.utils import PeftType

from bishare_dsl.folder.config import PEFT_TYPE


def peft_type() -> PeftType:
    """Return bishare's member of `PeftType`, adding it on the first call."""
    if PEFT_TYPE not in PeftType.__members__:
        member = str.__new__(PeftType, PEFT_TYPE)
        of_enum = {"_name_": PEFT_TYPE, "_value_": PEFT_TYPE, "__objclass__": PeftType}
        vars(member).update(of_enum, _sort_order_=len(PeftType))
        PeftType._member_map_[PEFT_TYPE] = PeftType._value2member_map_[PEFT_TYPE] = member
        PeftType._member_names_.append(PEFT_TYPE)
        type.__setattr__(PeftType, PEFT_TYPE, member)
    return PeftType(PEFT_TYPE)
