"""Transforms: one file each, behind one protocol, found by name."""

from bishare_dsl.transforms.gate_transformation import GateTransformation
from bishare_dsl.transforms.identity import Identity
from bishare_dsl.transforms.kronecker_extension import KroneckerExtension
from bishare_dsl.transforms.registry import register, transform_kinds
from bishare_dsl.transforms.slice_sharing import SliceSharing
from bishare_dsl.transforms.transform import Own, Transform, Width

__all__ = [
    "GateTransformation",
    "Identity",
    "KroneckerExtension",
    "Own",
    "SliceSharing",
    "Transform",
    "Width",
    "register",
    "transform_kinds",
]
