"""Transforms: one file each, behind one protocol, found by name."""

from bishare_dsl.transforms.apply import GAIN_OUT, GAIN_RANK, effective_pair, update_of
from bishare_dsl.transforms.registry import register, transform_kind, transform_names
from bishare_dsl.transforms.transform import Own, Start, Transform, Width, one_width

__all__ = [
    "GAIN_OUT",
    "GAIN_RANK",
    "Own",
    "Start",
    "Transform",
    "Width",
    "effective_pair",
    "one_width",
    "register",
    "transform_kind",
    "transform_names",
    "update_of",
]
