"""The config of an adapter folder: what wrote it, for which base, and what its files must be."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bishare_dsl.models.site import Architecture
from bishare_dsl.version import __version__
from bishare_dsl.writing import Digest

FORMAT = 2
"""The format of an adapter that this version writes."""

LIBRARY = 3
"""That of a library; the newest that this version reads."""


NAME = r"^\w[\w.-]*$"
"""What an adapter of a library may be called: it is the name of a file."""


class DrawnTensor(BaseModel):
    """A frozen tensor that is not in the file: ``seed`` draws it, and it is rounded to ``dtype``.

    ``sha256`` is that of its bytes, row by row, little-endian.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Literal["float64", "float32", "bfloat16", "float16"]
    sha256: str


class AdapterConfig(BaseModel):
    """``bishare_config.json``.

    ``seed`` drew the first values; ``base_model`` is the base's id on the Hub, or else what the user
    called it, and ``base_revision`` its commit there, where they are known. ``base`` are its shapes: with
    the spec they make the plan, of which ``plan`` is the digest. ``files`` are the files that make up the
    adapter, and ``digest`` is that of the config itself.

    ``drawn`` are the tensors that are not stored. ``compact`` names the parts that stand in the file for
    a tensor, each as ``TENSOR:PART``. ``of_base`` are those that are what the base has, and that nobody has
    trained. ``packages`` says for each transform that is not bishare's own which package, and which
    version, it is from. ``rounded`` is the type that float32 tensors were rounded to for
    the file; loaded, they are float32 again.

    Of a library ``adapters`` are the files that each adapter has for itself, by its name; ``files`` are those
    of all.

    Format 1, of bishare 0.1, has a file with the plan instead of ``base`` and ``plan``, and no ``digest``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    versions: dict[str, str | None]
    seed: int
    base_model: str
    base_revision: str | None = None
    base: Architecture | None = None
    plan: str | None = None
    drawn: dict[str, DrawnTensor] = {}
    compact: dict[str, tuple[str, ...]] = {}
    of_base: tuple[str, ...] = ()
    packages: dict[str, Annotated[str, Field(pattern=r"^[\w.-]+( [\w.+!-]+)?$")]] = {}
    rounded: Literal["bfloat16"] | None = None
    files: dict[str, Digest]
    adapters: dict[Annotated[str, Field(pattern=NAME)], Digest] | None = None
    digest: str | None = None

    def text(self) -> str:
        """Return the text of the file, with the digest of all the rest in it."""
        return seal(self.model_dump(mode="json", exclude_none=True))

    @classmethod
    def of(cls, fields: dict[str, Any]) -> AdapterConfig:
        """Check what stands in the file.

        Raises:
            ValueError: it is not what was written.
        """
        config = cls.model_validate(fields)
        if config.format > 1:
            if config.digest != _digest(fields):
                raise ValueError("it is not what was saved")
            if (config.format == LIBRARY) != bool(config.adapters):
                raise ValueError("only a library has adapters, and it has some")
            if config.base is None or config.plan is None:
                raise ValueError("it does not say what the plan is made from")
        return config


def seal(fields: dict[str, Any]) -> str:
    """Return a config as text, with the digest of all its other fields."""
    return json.dumps(fields | {"digest": _digest(fields)}, indent=1) + "\n"


def _digest(fields: dict[str, Any]) -> str:
    others = {name: value for name, value in fields.items() if name != "digest"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def installed_versions() -> dict[str, str | None]:
    """Return the versions of what writes an adapter; None for a package that is not installed."""
    found: dict[str, str | None] = {"bishare": __version__}
    for package in ("torch", "transformers"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found
