"""Transforms: one file each, behind one protocol, found by name."""

from bishare_dsl.transforms.apply import GAIN_OUT, GAIN_RANK, effective_pair, update_of
from bishare_dsl.transforms.gate_transformation import GateTransformation
from bishare_dsl.transforms.identity import Identity
from bishare_dsl.transforms.kronecker_extension import KroneckerExtension
from bishare_dsl.transforms.registry import register, transform_kind, transform_names
from bishare_dsl.transforms.slice_sharing import SliceSharing
from bishare_dsl.transforms.transform import Own, Start, Transform, Width

__all__ = [
    "GAIN_OUT",
    "GAIN_RANK",
    "GateTransformation",
    "Identity",
    "KroneckerExtension",
    "Own",
    "SliceSharing",
    "Start",
    "Transform",
    "Width",
    "effective_pair",
    "register",
    "transform_kind",
    "transform_names",
    "update_of",
]
