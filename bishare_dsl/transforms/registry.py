"""Transforms by the name used after ``via`` in a spec, including those of installed packages.

A package registers a transform as an entry point of the group `GROUP`, under the transform's name. It is
imported only when a spec uses it.
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
"""The entry point group in which packages register transforms."""

SHIPPED = f"{__package__}.shipped"
"""The package of the transforms that bishare ships."""

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
    "Gather": "gather:Gather",
    "Scaled": "scaled:Scaled",
    "Experts": "experts:Experts",
}
"""Module and class of each built-in transform, imported only when a spec uses it."""

PLAIN = "Identity"
"""The transform of a share without ``via``."""

COMPOSED = "Composed"
"""The name in plans of a transform that is made of several."""

_OF_STATEMENTS = {MAGNITUDE: "magnitude:Magnitude", COMPOSED: "composed:Composed"}
"""Transforms used by a statement of the language, not by a name after ``via``."""

_REGISTERED: dict[str, type[Transform]] = {}


def register(kind: type[Transform]) -> type[Transform]:
    """Make a transform available in specs under its name; a class decorator.

    Raises:
        ValueError: the name is taken, or the roles are invalid.
    """
    if why := _wrong_roles(kind):
        raise ValueError(f"the transform {kind.name!r} cannot be used: {why}")
    taken = kind.name in BUILT_IN or kind.name in _OF_STATEMENTS
    if taken or _REGISTERED.setdefault(kind.name, kind) is not kind:
        raise ValueError(f"the transform name {kind.name!r} is taken")
    return kind


def load_transform(name: str, options: Mapping[str, Any], *refusals: type[Exception]) -> Transform:
    """Return the transform with a name and options.

    Args:
        name: as in a spec.
        options: by name; defaults may be omitted.
        refusals: exceptions to pass on if the transform rejects the options.

    Raises:
        KeyError: no such transform.
        SpecError: a package's transform cannot be used, or rejects these options (BS214).
    """
    kind = transform_kind(name)
    try:
        transform = kind.model_validate(options)
        hash(transform)  # Regions are compared by their transforms.
    except refusals:
        raise
    except Exception as error:  # Another package's validators may raise anything.
        raise transform_error(
            kind, f"it does not take {dict(options)}: {describe_exception(error)}"
        ) from error
    return transform


def transform_error(transform: Transform | type[Transform], why: str) -> SpecError:
    """Return the error for a faulty transform (BS214)."""
    kind = transform if isinstance(transform, type) else type(transform)
    return SpecError(codes.BROKEN_PLUGIN(name=kind.name, package=package_of(kind), why=why))


def package_of(kind: type[Transform]) -> str:
    """Return a transform's package: the name of its distribution, or of its module.

    This works for any transform, including those of `register`, which have no distribution.
    """
    points = _entry_points().get(kind.name)
    return _package(points[0]) if points else kind.__module__.partition(".")[0]


def package_version(name: str) -> str | None:
    """Return ``package version`` of the installed package that registers a transform, or None."""
    for point in _entry_points().get(name, ()):
        return f"{point.dist.name} {point.dist.version}" if point.dist else point.module
    return None


def describe_exception(error: BaseException) -> str:
    """Format an exception on one line: its class and message."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def transform_names() -> list[str]:
    """Return the names of all transforms, including those of installed packages, without importing them."""
    return sorted({*BUILT_IN, *_REGISTERED, *_entry_points()})


def transform_kind(name: str) -> type[Transform]:
    """Return the class of a transform.

    A built-in name is always bishare's, and the packages, whose metadata takes long to read, are not asked.

    Raises:
        KeyError: no such transform.
        SpecError: a package's transform cannot be used (BS214); the error names the package.
    """
    if place := (BUILT_IN | _OF_STATEMENTS).get(name):
        module, _, attribute = place.partition(":")
        kind: type[Transform] = getattr(import_module(f"{SHIPPED}.{module}"), attribute)
        return kind
    points = _entry_points().get(name, ())
    # The registered class may be decorated with `register`, too.
    taken = len(points) == 1 and _REGISTERED.get(name, _load(points[0])) is not _load(points[0])
    if len(points) + taken > 1:
        packages = " and ".join(sorted(_package(point) for point in points))
        raise SpecError(
            codes.BROKEN_PLUGIN(name=name, package=packages, why="another transform has this name")
        )
    if points:
        return _load(points[0])
    return _REGISTERED[name]


@cache
def _entry_points() -> Mapping[str, tuple[EntryPoint, ...]]:
    from importlib.metadata import entry_points

    points: dict[str, tuple[EntryPoint, ...]] = {}
    for point in entry_points(group=GROUP):
        if point.name in BUILT_IN or point.name in _OF_STATEMENTS:
            continue
        points[point.name] = (*points.get(point.name, ()), point)
    return points


@cache
def _load(point: EntryPoint) -> type[Transform]:
    def broken(why: str) -> SpecError:
        return SpecError(codes.BROKEN_PLUGIN(name=point.name, package=_package(point), why=why))

    try:
        kind = point.load()
    except (Exception, SystemExit) as error:  # Another package's import may raise anything.
        raise broken(describe_exception(error)) from error
    if not (isinstance(kind, type) and issubclass(kind, Transform)):
        raise broken(f"{point.value} is not a subclass of bishare_dsl.transforms.Transform")
    if getattr(kind, "name", None) != point.name:
        raise broken(f"{point.value} calls itself {getattr(kind, 'name', None)!r}")
    if why := _wrong_roles(kind):
        raise broken(why)
    return kind


def _wrong_roles(kind: type[Transform]) -> str | None:
    """Explain why a transform's roles are invalid as parts of tensor names, or the names in its lists are no
    roles or options; None if they are valid."""
    declared: list[object] = [kind.pooled, kind.owned]
    if not all(isinstance(roles, tuple) for roles in declared):
        return "`pooled` and `owned` must be tuples"
    roles: list[object] = [*kind.pooled, *kind.owned]
    for role in roles:
        if not (isinstance(role, str) and role.isidentifier() and "__" not in role):
            return f"the role {role!r} is not a name"
        if role in (GAIN_RANK, GAIN_OUT) or roles.count(role) > 1:
            return f"the role {role!r} is taken"
    options = kind.model_fields
    for word, known in (
        ("fixed", roles),
        ("plain", roles),
        ("exact", roles),
        ("auto", options),
        ("later", options),
    ):
        for name in getattr(kind, word):
            if name not in known:
                return f"`{word}` has {name!r}, which is none of {[*known]}"
    return None


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.module
