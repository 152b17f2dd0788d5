"""Transforms by the name that a spec writes after ``via``; installed packages bring their own.

A package registers a transform as an entry point of the group `GROUP`, under the transform's name.
It is imported when a spec asks for it, and not before.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

from bishare_dsl.diagnostics import SpecError
from bishare_dsl.diagnostics.codes import spec as codes
from bishare_dsl.transforms.basis import Basis
from bishare_dsl.transforms.block_diagonal import BlockDiagonal
from bishare_dsl.transforms.experts import Experts
from bishare_dsl.transforms.gate_transformation import GateTransformation
from bishare_dsl.transforms.identity import Identity
from bishare_dsl.transforms.kronecker_extension import KroneckerExtension
from bishare_dsl.transforms.rotation import Rotation
from bishare_dsl.transforms.slice_sharing import SliceSharing
from bishare_dsl.transforms.transform import Transform
from bishare_dsl.transforms.vector_bank import VectorBank

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "bishare.transforms"
"""The group of entry points that packages register transforms in."""

_REGISTERED: dict[str, type[Transform]] = {
    kind.name: kind
    for kind in (
        Identity,
        SliceSharing,
        GateTransformation,
        KroneckerExtension,
        VectorBank,
        Rotation,
        BlockDiagonal,
        Basis,
        Experts,
    )
}


def register(kind: type[Transform]) -> type[Transform]:
    """Make a transform usable in specs under its name; a class decorator.

    Raises:
        ValueError: another transform has the name.
    """
    if _REGISTERED.setdefault(kind.name, kind) is not kind:
        raise ValueError(f"the transform name {kind.name!r} is taken by {_REGISTERED[kind.name]}")
    return kind


def transform_names() -> list[str]:
    """The name of every transform there is, those of installed packages included; none is imported."""
    return sorted({*_REGISTERED, *_entry_points()})


def transform_kind(name: str) -> type[Transform]:
    """The transform of a name.

    Raises:
        KeyError: there is none.
        SpecError: a package's transform cannot be used (BS214); the package is named.
    """
    if name in _REGISTERED:
        if name in _entry_points():
            raise SpecError(
                codes.BROKEN_PLUGIN(
                    name=name,
                    package=_package(_entry_points()[name][0]),
                    why="the name is taken by a transform that is there already",
                )
            )
        return _REGISTERED[name]
    found = _entry_points()[name]
    if len(found) > 1:
        packages = " and ".join(sorted(_package(point) for point in found))
        raise SpecError(
            codes.BROKEN_PLUGIN(name=name, package=packages, why="both register this name")
        )
    return _load(found[0])


@cache
def _entry_points() -> Mapping[str, tuple[EntryPoint, ...]]:
    from importlib.metadata import entry_points

    found: dict[str, tuple[EntryPoint, ...]] = {}
    for point in entry_points(group=GROUP):
        found[point.name] = (*found.get(point.name, ()), point)
    return found


@cache
def _load(point: EntryPoint) -> type[Transform]:
    def broken(why: str) -> SpecError:
        return SpecError(codes.BROKEN_PLUGIN(name=point.name, package=_package(point), why=why))

    try:
        kind = point.load()
    except Exception as error:  # Whatever another package's import raises.
        raise broken(f"{type(error).__name__}: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, Transform)):
        raise broken(f"{point.value} is no subclass of bishare_dsl.transforms.Transform")
    if getattr(kind, "name", None) != point.name:
        raise broken(f"{point.value} calls itself {getattr(kind, 'name', None)!r}")
    return kind


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.module
