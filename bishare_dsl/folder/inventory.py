"""Listings of adapters, read from configs and from the headers of tensor files.

Listing reads no tensors, and adapters of one spec share one plan, so a thousand adapters take seconds. It
does not verify the contents: `read_adapter` does that for one adapter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from os import scandir, stat_result
from pathlib import Path
from stat import S_ISREG
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from bishare_dsl.diagnostics import BishareError, one_line
from bishare_dsl.diagnostics.codes.adapter import MISSING_TRANSFORM
from bishare_dsl.folder.config import PEFT_TYPE, AdapterConfig
from bishare_dsl.folder.contents import MEMBERS, check_plan, own_file
from bishare_dsl.folder.files import CONFIG, TENSORS, place_of
from bishare_dsl.reading import MAX_CONFIG, parse_json, read_file

_SPEC = re.compile(r"^\s*spec\s+(\"[^\"\n]+\"|[\w.-]+)", re.MULTILINE)
_BROKEN = (
    AttributeError,
    BishareError,
    LookupError,
    OSError,
    SafetensorError,
    TypeError,
    ValueError,
)
"""What reading a damaged config or file may raise."""


@dataclass(frozen=True)
class Listed:
    """One adapter as described by its folder.

    Attributes:
        name: of the folder, or of the adapter in a library.
        place: the path to pass on a command line.
        method: the name of its spec, or of another PEFT method in lower case.
        base: the base model's name; None if the config has no name.
        revision: the commit of the base on the Hub.
        rank: the minimum and maximum rank of a module's update, as declared: the sum over its terms.
        parameters: stored for this adapter, without those shared with a library.
        bytes: of its files, without those shared with a library.
        date: when its tensors were written, in seconds since 1970.
        library: the folder of its library.
        spec: the text of its spec, to compare adapters.
        error: why the folder could not be read; the fields above are then empty.
    """

    name: str
    place: str
    method: str = ""
    base: str | None = None
    revision: str | None = None
    rank: tuple[int, int] | None = None
    parameters: int = 0
    bytes: int = 0
    date: float = 0.0
    library: str | None = None
    spec: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Shared:
    """The common part of a library's adapters, stored once."""

    library: str
    adapters: int
    parameters: int
    bytes: int


def list_adapters(folder: Path) -> Iterator[Listed | Shared]:
    """Describe the adapter in a folder, or each adapter of a library and their common part."""
    place, member = place_of(folder)
    try:
        fields = parse_json(read_file(place, CONFIG, MAX_CONFIG))
        if fields.get("peft_type") != PEFT_TYPE:
            ranks = [fields.get("r"), *(fields.get("rank_pattern") or {}).values()]
            described = _described(str(fields.get("peft_type") or "unknown").lower(), fields, ranks)
            yield _listed(folder, TENSORS, **described)
            return
        config = AdapterConfig.of(fields, place)
        spec = _SPEC.search(config.spec)
        described = _described(spec[1].strip('"') if spec else "unknown", fields, _ranks_of(config))
        if config.adapters is None:
            yield _listed(folder, TENSORS, **described)
            return
        numbers, size, _ = _tensors(place, TENSORS)
        names = [member] if member else [*config.adapters]
        statuses = _statuses(place / MEMBERS)
        numbers_of: dict[int, int] = {}
        for name in names:
            try:
                yield _member(place, name, statuses, numbers_of, described)
            except _BROKEN as error:
                yield Listed(name, f"{place}#{name}", error=one_line(error))
        size += (place / CONFIG).stat().st_size
        yield Shared(str(place), len(config.adapters), numbers, size)
    except _BROKEN as error:
        yield Listed(place.resolve().name, str(folder), error=one_line(error))


def _described(method: str, fields: Mapping[str, Any], ranks: list[Any]) -> dict[str, Any]:
    names = {"base": "base_model_name_or_path", "revision": "revision", "spec": "spec"}
    known = [rank for rank in ranks if type(rank) is int]
    texts = {ours: str(value) for ours, name in names.items() if (value := fields.get(name))}
    return {"method": method, "rank": (min(known), max(known)) if known else None, **texts}


def _ranks_of(config: AdapterConfig) -> list[Any]:
    """Return the ranks of an adapter's modules; none if its transforms are not installed here."""
    try:
        plan, _ = check_plan(config)
    except BishareError as error:
        if error.problems[0].code != MISSING_TRANSFORM.code:
            raise
        return []
    return [sum(term.rank for term in terms) for terms in plan.terms_of.values() if terms]


def _listed(folder: Path, file: str, **described: Any) -> Listed:
    """Describe an adapter by its tensor file."""
    numbers, size, date = _tensors(folder, file)
    return Listed(
        name=folder.resolve().name,
        place=str(folder),
        parameters=numbers,
        bytes=size + (folder / CONFIG).stat().st_size,
        date=date,
        **described,
    )


def _statuses(folder: Path) -> dict[str, stat_result]:
    """Return what the system says of each file in a folder, by its name, in one pass."""
    if not folder.is_dir():
        return {}
    with scandir(folder) as entries:
        return {entry.name: entry.stat() for entry in entries if entry.is_file()}


def _member(
    library: Path,
    name: str,
    statuses: Mapping[str, stat_result],
    numbers_of: dict[int, int],
    described: Mapping[str, Any],
) -> Listed:
    """Describe an adapter of a library.

    Args:
        library: its folder.
        name: of the adapter.
        statuses: what the system says of the files of its adapters, by their names.
        numbers_of: the number of values in a file, by its bytes. Adapters of a library have the same tensors,
            so that only the first file of each size is opened. New sizes are added.
        described: what the config says of each.

    Raises:
        OSError: there is no such file, or it cannot be read.
        SafetensorError: this is not a tensor file.
    """
    file = own_file(name)
    status = statuses.get(file.removeprefix(f"{MEMBERS}/"))
    if status is None:
        raise FileNotFoundError(f"`{file}` is missing")
    if status.st_size not in numbers_of:
        numbers_of[status.st_size] = _numbers(library / file)
    return Listed(
        name=name,
        place=f"{library}#{name}",
        parameters=numbers_of[status.st_size],
        bytes=status.st_size,
        date=status.st_mtime,
        library=str(library),
        **described,
    )


class _TensorFile(NamedTuple):
    """What the header and the system say of a tensor file."""

    numbers: int
    bytes: int
    date: float


def _tensors(folder: Path, name: str) -> _TensorFile:
    """Return the number of values in a tensor file, its bytes and its date, from the header alone.

    Args:
        folder: of the file.
        name: of the file.

    Raises:
        OSError: there is no such file, or it cannot be read.
        SafetensorError: this is not a tensor file.
    """
    path = folder / name
    try:
        status = path.stat()
    except FileNotFoundError:
        raise FileNotFoundError(f"`{name}` is missing") from None
    if not S_ISREG(status.st_mode):
        raise FileNotFoundError(f"`{name}` is missing")
    return _TensorFile(_numbers(path), status.st_size, status.st_mtime)


def _numbers(path: Path) -> int:
    """Return the number of values in a tensor file, from its header.

    Raises:
        SafetensorError: this is not a tensor file.
    """
    with safe_open(path, "numpy") as file:
        shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118
    return sum(prod(shape) for shape in shapes)
