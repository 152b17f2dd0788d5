"""The config of an adapter folder: what wrote it, for which base, and what its files must be."""

from __future__ import annotations

import importlib.metadata
from typing import Literal

from pydantic import BaseModel, ConfigDict

from bishare_dsl.version import __version__
from bishare_dsl.writing import Digest

FORMAT = 1
"""The format that this version writes, and the newest that it reads."""


class Versions(BaseModel):
    """The versions that wrote an adapter; None for a package that was not installed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bishare: str
    torch: str | None
    transformers: str | None

    @classmethod
    def here(cls) -> Versions:
        return cls(
            bishare=__version__, torch=_version("torch"), transformers=_version("transformers")
        )


class Drawn(BaseModel):
    """A frozen tensor that is not in the file: ``seed`` draws it, and it is rounded to ``dtype``.

    ``sha256`` is that of its bytes, row by row, little-endian.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Literal["float64", "float32", "bfloat16", "float16"]
    sha256: str


class AdapterConfig(BaseModel):
    """``bishare_config.json``.

    ``seed`` drew the first values; ``base_model`` is the base's id on the Hub, or else what the user
    called it, and ``base_revision`` its commit there, where they are known. ``files`` are the files that
    make up the adapter.

    ``drawn`` are the tensors that are not stored. ``compact`` names the parts that stand in the file for
    a tensor, each as ``TENSOR:PART``. ``packages`` says for each transform that is not bishare's own which
    package, and which version, it is from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    versions: Versions
    seed: int
    base_model: str
    base_revision: str | None = None
    drawn: dict[str, Drawn] = {}
    compact: dict[str, tuple[str, ...]] = {}
    packages: dict[str, str] = {}
    files: dict[str, Digest]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
