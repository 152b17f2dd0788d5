"""Transforms by the name that a spec writes after ``via``; installed packages bring their own.

A package registers a transform as an entry point of the group `GROUP`, under the transform's name.
It is imported when a spec asks for it, and not before.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from bishare_dsl.diagnostics import SpecError
from bishare_dsl.diagnostics.codes import spec as codes
from bishare_dsl.spec.spec import MAGNITUDE
from bishare_dsl.transforms.apply import GAIN_OUT, GAIN_RANK
from bishare_dsl.transforms.transform import Transform

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "bishare.transforms"
"""The group of entry points that packages register transforms in."""

BUILT_IN = {
    "Identity": "identity:Identity",
    "SS": "slice_sharing:SliceSharing",
    "GT": "gate_transformation:GateTransformation",
    "KE": "kronecker_extension:KroneckerExtension",
    "VectorBank": "vector_bank:VectorBank",
    "Rotation": "rotation:Rotation",
    "BlockDiagonal": "block_diagonal:BlockDiagonal",
    "Basis": "basis:Basis",
    "Mix": "mix:Mix",
    "Core": "core:Core",
    "MiSS": "miss:MiSS",
    "Hadamard": "hadamard:Hadamard",
    "Grid": "grid:Grid",
    "Shards": "shards:Shards",
    "Loadings": "loadings:Loadings",
    "Experts": "experts:Experts",
}
"""Where each transform of ours is; like those of packages, it is imported when a spec asks for it."""

_OF_STATEMENTS = {MAGNITUDE: "magnitude:Magnitude"}
"""Those that a statement of the language stands for, so that none writes them after ``via``."""

_REGISTERED: dict[str, type[Transform]] = {}


def register(kind: type[Transform]) -> type[Transform]:
    """Make a transform usable in specs under its name; a class decorator.

    Raises:
        ValueError: another transform has the name, or its roles cannot be.
    """
    if why := _wrong_roles(kind):
        raise ValueError(f"the transform {kind.name!r} cannot be used: {why}")
    taken = kind.name in BUILT_IN or kind.name in _OF_STATEMENTS
    if taken or _REGISTERED.setdefault(kind.name, kind) is not kind:
        raise ValueError(f"the transform name {kind.name!r} is taken")
    return kind


def load_transform(name: str, options: Mapping[str, Any], *refusals: type[Exception]) -> Transform:
    """Return the transform of a name with these options.

    Args:
        name: as a spec writes it.
        options: by name, defaults left out or not.
        refusals: what goes on as it is where the transform does not take the options.

    Raises:
        KeyError: there is none.
        SpecError: a package's transform cannot be used, or does not take these options (BS214).
    """
    kind = transform_kind(name)
    try:
        transform = kind.model_validate(options)
        hash(transform)  # Regions are compared by what is in them.
    except refusals:
        raise
    except Exception as error:  # Whatever another package's validators raise.
        raise transform_error(
            kind, f"it does not take {dict(options)}: {describe_exception(error)}"
        ) from error
    return transform


def transform_error(transform: Transform | type[Transform], why: str) -> SpecError:
    """Return the error that says what is wrong with a transform (BS214)."""
    kind = transform if isinstance(transform, type) else type(transform)
    return SpecError(codes.BROKEN_PLUGIN(name=kind.name, package=package_of(kind), why=why))


def package_of(kind: type[Transform]) -> str:
    """Return the package that a transform is from: its distribution's name, or else its module's.

    A name can be asked of any transform; no package has registered those of `register`.
    """
    points = _entry_points().get(kind.name)
    return _package(points[0]) if points else kind.__module__.partition(".")[0]


def package_version(name: str) -> str | None:
    """Return ``package version`` of the installed package that registers a transform; None for the others."""
    for point in _entry_points().get(name, ()):
        return f"{point.dist.name} {point.dist.version}" if point.dist else point.module
    return None


def describe_exception(error: BaseException) -> str:
    """Say an exception in a line: its class and its own words."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def transform_names() -> list[str]:
    """Return the name of every transform there is, those of installed packages included; none is imported."""
    return sorted({*BUILT_IN, *_REGISTERED, *_entry_points()})


def transform_kind(name: str) -> type[Transform]:
    """Return the transform of a name.

    Raises:
        KeyError: there is none.
        SpecError: a package's transform cannot be used (BS214); the package is named.
    """
    found = _entry_points().get(name, ())
    taken = name in BUILT_IN or name in _OF_STATEMENTS
    if len(found) == 1 and not taken and name in _REGISTERED:
        # The class that the package registers may also be decorated with `register`.
        taken = _load(found[0]) is not _REGISTERED[name]
    if len(found) + taken > 1:
        packages = " and ".join(sorted(_package(point) for point in found))
        raise SpecError(
            codes.BROKEN_PLUGIN(name=name, package=packages, why="another transform has this name")
        )
    if found:
        return _load(found[0])
    if name in _REGISTERED:
        return _REGISTERED[name]
    module, _, attribute = (BUILT_IN | _OF_STATEMENTS)[name].partition(":")
    kind: type[Transform] = getattr(import_module(f"bishare_dsl.transforms.{module}"), attribute)
    return kind


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
    except (Exception, SystemExit) as error:  # Whatever another package's import raises.
        raise broken(describe_exception(error)) from error
    if not (isinstance(kind, type) and issubclass(kind, Transform)):
        raise broken(f"{point.value} is not a subclass of bishare_dsl.transforms.Transform")
    if getattr(kind, "name", None) != point.name:
        raise broken(f"{point.value} calls itself {getattr(kind, 'name', None)!r}")
    if why := _wrong_roles(kind):
        raise broken(why)
    return kind


def _wrong_roles(kind: type[Transform]) -> str | None:
    """Return what is wrong with the roles of a transform: they become parts of the names of tensors."""
    declared: list[object] = [kind.pooled, kind.owned]
    if not all(isinstance(roles, tuple) for roles in declared):
        return "`pooled` and `owned` must be tuples"
    roles: list[object] = [*kind.pooled, *kind.owned]
    for role in roles:
        if not (isinstance(role, str) and role.isidentifier() and "__" not in role):
            return f"the role {role!r} is not a name"
        if role in (GAIN_RANK, GAIN_OUT) or roles.count(role) > 1:
            return f"the role {role!r} is taken"
    return None


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.module
