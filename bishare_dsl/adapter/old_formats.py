"""Read the folders of bishare 0.1 and 0.2: formats 1 to 3. Nothing writes them; drop this file with them.

| file | |
|---|---|
| ``bishare_config.json`` | versions, seed, the base and its shapes, digests of all files and of itself |
| ``adapter.safetensors`` | each tensor once, under its own name in the plan |
| ``spec.share`` | the spec's text |
| ``plan.json`` | format 1: the plan, whose base stands in no other file |
| ``adapters/NAME.safetensors`` | format 3, a library: what each adapter has for itself |

A file whose writing was interrupted stands as ``NAME.new`` beside the old one; the config's digests tell
which is meant.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt

from bishare_dsl.adapter.config import NAME, AdapterConfig, DrawnTensor
from bishare_dsl.adapter.contents import (
    StoredAdapter,
    check_names,
    check_plan,
    entries_in,
    expected,
    own_of,
    reading,
    tensor_problems,
)
from bishare_dsl.diagnostics import AdapterError, one_line, raise_errors
from bishare_dsl.diagnostics.codes import adapter as codes
from bishare_dsl.models.site import Architecture
from bishare_dsl.plan import Plan
from bishare_dsl.reading import MAX_CONFIG, read_file

CONFIG = "bishare_config.json"
TENSORS = "adapter.safetensors"
_SPEC = "spec.share"
_PLAN = "plan.json"
_NEWEST = 3


class _Digest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: NonNegativeInt
    sha256: str


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    versions: dict[str, str | None]
    seed: int
    base_model: str
    base_revision: str | None = None
    base: Architecture | None = None
    plan: str | None = None
    drawn: dict[str, DrawnTensor] = {}
    compact: dict[str, tuple[str, ...]] = {}
    of_base: tuple[str, ...] = ()
    packages: dict[str, str] = {}
    rounded: Any = None
    files: dict[str, _Digest]
    adapters: dict[Annotated[str, Field(pattern=NAME)], _Digest] | None = None
    digest: str | None = None


def names_in(folder: Path) -> tuple[str, ...]:
    """Return the names of the adapters of a library; none where a folder is not a library."""
    return tuple(_read_config(folder).adapters or ())


def read(folder: Path, name: str | None) -> StoredAdapter:
    """Read an adapter, or the adapter ``name`` of a library.

    Raises:
        AdapterError, SpecError: as `bishare_dsl.adapter.files.read_adapter`.
    """
    old = _read_config(folder)
    own = own_of(folder, name, old.adapters or {})
    spec = _content(folder, _SPEC, old.files[_SPEC])
    files = {TENSORS: old.files[TENSORS]} | own
    contents = [_content(folder, file, digest) for file, digest in files.items()]
    with reading(folder / _SPEC):
        fields: Any = old.model_dump(exclude={"files", "adapters", "digest", "format"})
        if old.format == 1:
            saved = Plan.model_validate_json(_content(folder, _PLAN, old.files[_PLAN]))
            fields |= {"base": saved.base, "plan": saved.digest}
        config = AdapterConfig.model_validate(fields | {"spec": spec.decode()})
        plan = check_plan(config)
    check_names(folder / CONFIG, plan, config)
    with reading(folder / TENSORS):
        entries = {k: entry for content in contents for k, entry in entries_in(content).items()}
    raise_errors(AdapterError, list(tensor_problems(expected(plan, config), entries)))
    place = Path(f"{folder}#{name}") if name is not None else folder
    return StoredAdapter(place, config, plan, entries)


def _read_config(folder: Path) -> _Config:
    path = folder / CONFIG
    try:
        fields = json.loads(read_file(folder, CONFIG, MAX_CONFIG))
        config = _Config.model_validate(fields)
        others = {name: value for name, value in fields.items() if name != "digest"}
        text = json.dumps(others, sort_keys=True).encode()
        if config.format > 1 and config.digest != hashlib.sha256(text).hexdigest():
            raise ValueError("it is not what was saved")
        if config.format > _NEWEST or not {TENSORS, _SPEC} <= config.files.keys():
            raise ValueError("its list of files is not that of an adapter")
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(codes.BROKEN_CONFIG(path=path, reason=one_line(error))) from error
    return config


def _content(folder: Path, name: str, digest: _Digest) -> bytes:
    with reading(folder / name):
        for file in (name, f"{name}.new"):
            with suppress(FileNotFoundError):
                content = read_file(folder, file, digest.bytes)
                if hashlib.sha256(content).hexdigest() == digest.sha256:
                    return content
        if not (folder / name).is_file():
            raise AdapterError(codes.MISSING_FILE(folder=folder, file=name))
    raise AdapterError(codes.CHANGED_FILE(path=folder / name, reason="its content is another"))
