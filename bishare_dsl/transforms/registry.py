"""Transforms by the name that a spec writes after ``via``."""

from __future__ import annotations

from bishare_dsl.transforms.gate_transformation import GateTransformation
from bishare_dsl.transforms.identity import Identity
from bishare_dsl.transforms.kronecker_extension import KroneckerExtension
from bishare_dsl.transforms.slice_sharing import SliceSharing
from bishare_dsl.transforms.transform import Transform

_TRANSFORMS: dict[str, type[Transform]] = {
    kind.name: kind for kind in (Identity, SliceSharing, GateTransformation, KroneckerExtension)
}


def register(kind: type[Transform]) -> type[Transform]:
    """Make a transform usable in specs under its name; a class decorator.

    Raises:
        ValueError: another transform has the name.
    """
    if _TRANSFORMS.setdefault(kind.name, kind) is not kind:
        raise ValueError(f"the transform name {kind.name!r} is taken by {_TRANSFORMS[kind.name]}")
    return kind


def transform_kinds() -> dict[str, type[Transform]]:
    """Every registered transform by its name."""
    return dict(_TRANSFORMS)
