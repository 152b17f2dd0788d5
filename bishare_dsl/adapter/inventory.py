"""Listings of adapters, read from configs and from the headers of tensor files.

Listing reads no tensors and builds no plans, so a thousand adapters take seconds. It does not verify the
contents: `read_adapter` does that for one adapter.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from bishare_dsl.adapter.config import PEFT_TYPE, RECORD, text_of
from bishare_dsl.adapter.contents import own_file
from bishare_dsl.adapter.files import CONFIG, TENSORS, place_of
from bishare_dsl.diagnostics import one_line
from bishare_dsl.reading import MAX_CONFIG, read_file

_RUN, _STATE = "run.json", "trainer_state.json"
_SPEC = re.compile(r"^\s*spec\s+(\"[^\"\n]+\"|[\w.-]+)", re.MULTILINE)
_HEAD = 100_000_000
"""Maximum size of a tensor file's header in bytes, by the format."""


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
        steps: of the run that trained it, and its last ``loss``; None without a run in the folder.
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
    steps: int | None = None
    loss: float | None = None
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


def find_adapters(folder: Path) -> list[Path]:
    """Return the folders of adapters and libraries at a path, or one or two levels below it.

    They are sorted by name; checkpoints of runs are omitted.
    """
    place, _ = place_of(folder)
    if (place / CONFIG).is_file():
        return [folder]
    folders: list[Path] = []
    for child in _folders(folder):
        if (child / CONFIG).is_file():
            folders.append(child)
        else:
            folders += [inner for inner in _folders(child) if (inner / CONFIG).is_file()]
    return folders


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = [e.name for e in entries if e.is_dir() and not e.name.startswith(".")]
    except OSError:
        return []
    return [folder / name for name in sorted(names) if not re.fullmatch(r"checkpoint-\d+", name)]


def list_adapters(folder: Path) -> Iterator[Listed | Shared]:
    """Describe the adapter in a folder, or each adapter of a library and their common part."""
    place, member = place_of(folder)
    try:
        fields = _json(place, CONFIG)
        record = fields.get(RECORD)
        record = record if isinstance(record, dict) else {}
        members = record.get("adapters")
        if fields.get("peft_type") != PEFT_TYPE:
            yield _listed(folder, TENSORS, {}, **_of_lora(fields))
        elif isinstance(members, dict) and members:
            names = [member] if member else [*members]
            yield from _library(place, names, _sizes(record), _of_config(fields, record))
        else:
            yield _listed(folder, TENSORS, _sizes(record), **_of_config(fields, record))
    except (OSError, ValueError, RecursionError) as error:
        yield Listed(place.resolve().name, str(folder), error=one_line(error))


def _listed(
    folder: Path, file: str, sizes: Mapping[str, int], name: str | None = None, **described: Any
) -> Listed:
    """Describe an adapter by its tensor file; ``name`` is its name in a library."""
    numbers, size = _tensors(folder, file, sizes)
    return Listed(
        name=name or folder.resolve().name,
        place=str(folder) if name is None else f"{folder}#{name}",
        parameters=numbers,
        bytes=size if name else size + (folder / CONFIG).stat().st_size,
        date=(folder / file).stat().st_mtime,
        library=str(folder) if name else None,
        **described,
        **_run(folder, name),
    )


def _library(
    place: Path, names: list[str], sizes: Mapping[str, int], described: Mapping[str, Any]
) -> Iterator[Listed | Shared]:
    numbers, size = _tensors(place, TENSORS, sizes)
    for name in names:
        try:
            yield _listed(place, own_file(name), sizes, name, **described)
        except (OSError, ValueError) as error:
            yield Listed(name, f"{place}#{name}", error=one_line(error))
    yield Shared(str(place), len(names), numbers, size + (place / CONFIG).stat().st_size)


def _of_lora(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Describe an adapter of another PEFT method by its config."""
    ranks = [fields.get("r"), *_values(fields.get("rank_pattern"))]
    valid_ranks = [rank for rank in ranks if type(rank) is int]
    return {
        "method": str(fields.get("peft_type") or "unknown").lower(),
        "base": _text(fields.get("base_model_name_or_path")),
        "revision": _text(fields.get("revision")),
        "rank": (min(valid_ranks), max(valid_ranks)) if valid_ranks else None,
    }


def _of_config(fields: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    text = _text(fields.get("spec")) or ""
    spec_name = _SPEC.search(text)
    return {
        "method": spec_name[1].strip('"') if spec_name else "unknown",
        "base": _text(fields.get("base_model_name_or_path")),
        "revision": _text(fields.get("revision")),
        "rank": _ranks(record.get("sharing")),
        "spec": text,
    }


def _ranks(sharing: Any) -> tuple[int, int] | None:
    """Return the minimum and maximum sum of the ranks of a module's terms listed in ``sharing``."""
    try:
        return _ranks_in(text_of(sharing))
    except (ValueError, TypeError, KeyError, IndexError):
        return None


@lru_cache(maxsize=64)
def _ranks_in(text: str) -> tuple[int, int] | None:
    """Return the ranks in a text of ``sharing``; cached, because adapters of one spec have equal texts."""
    stated = json.loads(text)
    terms = stated.get("terms", ())  # Format 1 lists terms in each module.
    sums = [
        sum(int((terms[t[0]] if isinstance(t, list) else t)["rank"]) for t in module["terms"])
        for module in stated["modules"]
    ]
    return (min(sums), max(sums)) if sums else None


def _run(folder: Path, task: str | None = None) -> dict[str, Any]:
    """Find the steps and the last loss of a run, in the folder or, for a run of many tasks, its parent."""
    name = task or folder.resolve().name
    for place in (folder, folder.resolve().parent):
        if not (place / _RUN).is_file() and not (place / _STATE).is_file():
            continue
        try:
            state = _json(place, _STATE)
        except (OSError, ValueError, RecursionError):
            continue
        history = [entry for entry in _items(state.get("log_history")) if isinstance(entry, dict)]
        by_task = [e["losses"] for e in history if isinstance(e.get("losses"), dict)]
        losses = [of_tasks.get(name) for of_tasks in by_task]
        if not by_task and place == folder:
            losses = [entry.get("loss") for entry in history]
        numbers = [loss for loss in losses if isinstance(loss, (int, float))]
        steps = state.get("global_step")
        if numbers or place == folder:
            last = float(numbers[-1]) if numbers else None
            return {"steps": steps if type(steps) is int else None, "loss": last}
    return {}


def _sizes(record: Mapping[str, Any]) -> dict[str, int]:
    """Return how many values quantised tensors have, by the keys of their numbers; scales count as none."""
    try:
        entries = [entry for entry in record["sharing"]["tensors"] if "scales" in entry]
        numbers = {entry.get("int8", entry.get("int4")): prod(entry["shape"]) for entry in entries}
        return numbers | {entry["scales"]: 0 for entry in entries}
    except (AttributeError, TypeError, KeyError):  # Older formats, or a damaged one.
        return {}


def _tensors(folder: Path, name: str, sizes: Mapping[str, int]) -> tuple[int, int]:
    """Return the number of values in a tensor file, and its bytes, from the header alone.

    Args:
        folder: of the file.
        name: of the file.
        sizes: the numbers of values of some tensors by key, if not those of their shapes.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: this is not a tensor file.
    """
    path = folder / name
    if not path.is_file():
        raise ValueError(f"`{name}` is missing")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        if length > min(_HEAD, size):
            raise ValueError(f"`{name}` is not a file of tensors")
        head = json.loads(file.read(length))
    try:
        head.pop("__metadata__", None)
        numbers = sum(sizes.get(key, prod(entry["shape"])) for key, entry in head.items())
    except (AttributeError, TypeError, KeyError) as error:
        raise ValueError(f"`{name}` is not a file of tensors") from error
    return numbers, size


def _json(folder: Path, name: str) -> dict[str, Any]:
    fields = json.loads(read_file(folder, name, MAX_CONFIG))
    if isinstance(fields, dict):
        return fields
    raise ValueError(f"`{name}` is not a JSON object")


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _items(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list) else ()


def _values(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else ()
