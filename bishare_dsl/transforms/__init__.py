"""Transforms: one file each, behind one protocol, found by name."""

from bishare_dsl.transforms.apply import GAIN_OUT, GAIN_RANK, effective_pair, update_of
from bishare_dsl.transforms.basis import Basis
from bishare_dsl.transforms.block_diagonal import BlockDiagonal
from bishare_dsl.transforms.experts import Experts
from bishare_dsl.transforms.gate_transformation import GateTransformation
from bishare_dsl.transforms.identity import Identity
from bishare_dsl.transforms.kronecker_extension import KroneckerExtension
from bishare_dsl.transforms.registry import register, transform_kind, transform_names
from bishare_dsl.transforms.rotation import Rotation
from bishare_dsl.transforms.slice_sharing import SliceSharing
from bishare_dsl.transforms.transform import Own, Start, Transform, Width, one_width
from bishare_dsl.transforms.vector_bank import VectorBank

__all__ = [
    "GAIN_OUT",
    "GAIN_RANK",
    "Basis",
    "BlockDiagonal",
    "Experts",
    "GateTransformation",
    "Identity",
    "KroneckerExtension",
    "Own",
    "Rotation",
    "SliceSharing",
    "Start",
    "Transform",
    "VectorBank",
    "Width",
    "effective_pair",
    "one_width",
    "register",
    "transform_kind",
    "transform_names",
    "update_of",
]
