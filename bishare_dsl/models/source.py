"""Resolve the value of ``--model``: a preset, a folder, a config, a GGUF file or a Hub id."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from bishare_dsl.diagnostics import ModelError, Problem, nearest
from bishare_dsl.diagnostics.codes.models import NO_SUCH_FILE, NOT_A_MODEL, UNKNOWN_MODEL
from bishare_dsl.diagnostics.record import Record
from bishare_dsl.models.presets import ALIASES, OWNERS, PRESETS

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_ACCEPTED = (
    "`--model` takes a preset (`bishare specs` lists them), a checkpoint folder, a config.json, a .gguf "
    "file, or a Hub id (owner/name)"
)


class Source(Record):
    """The source of a model. ``place`` is the name of a preset, an existing path, or a Hub id."""

    kind: Literal["preset", "folder", "config", "gguf", "hub"]
    place: str

    @property
    def name(self) -> str:
        """A short name for the model, without parent folders."""
        path = Path(self.place)
        match self.kind:
            case "folder":
                return path.resolve().name
            case "config" if path.name == "config.json":
                return path.resolve().parent.name
            case "config" | "gguf":
                return path.stem
            case _:
                return self.place


def resolve(name: str | Source) -> Source:
    """Resolve a name to a source, without using the network.

    A preset wins over a folder of the same name, so that a spec means the same everywhere; write
    ``./llama-7b`` for the folder.

    Raises:
        ModelError: the name does not exist (BS501, BS502), or is not a model (BS503).
    """
    if isinstance(name, Source):
        return name
    preset = ALIASES.get(name, name)
    if preset in PRESETS:
        return Source("preset", preset)
    if not name:  # as a path it would be the current folder
        raise ModelError(UNKNOWN_MODEL(name=name, help=_ACCEPTED))
    try:
        path = Path(name).expanduser()
        is_folder = path.is_dir()
        is_file = path.is_file()
    except (OSError, ValueError, RuntimeError):  # a NUL, a name too long, or no home folder
        raise ModelError(UNKNOWN_MODEL(name=name, help=_ACCEPTED)) from None
    if is_folder:
        if not (path / "config.json").is_file():
            raise ModelError(_folder_without_config(path))
        return Source("folder", str(path))
    ending = path.suffix.lower()
    if is_file:
        if ending not in (".gguf", ".json"):
            reason = "it is neither a .gguf file nor a .json file"
            raise ModelError(NOT_A_MODEL(path=path, reason=reason, help=_ACCEPTED))
        return Source("gguf" if ending == ".gguf" else "config", str(path))
    if name.startswith((".", "/", "~")) or ending in (".gguf", ".json"):
        raise ModelError(NO_SUCH_FILE(path=path, help=_ACCEPTED))
    if _HUB_ID.fullmatch(name):
        return Source("hub", name)
    raise ModelError(_unknown(name))


def _unknown(name: str) -> Problem:
    """Return the problem of a name that nothing has, with what may be meant."""
    lowered = name.lower()
    begun = [preset for preset in PRESETS if preset.startswith(lowered)]
    meant = nearest(name, begun[:3] or (*PRESETS, *ALIASES))
    owner = next((owner for start, owner in OWNERS.items() if lowered.startswith(start)), None)
    if owner and lowered in PRESETS:
        meant = f"on the Hub it may be `{owner}/{name}`, its shapes are `{lowered}`"
    elif owner and meant is None:
        meant = f"on the Hub it may be `{owner}/{name}`"
    start = ""
    if meant is not None:
        start = f"{meant} " if meant.endswith("?") else f"{meant}; "
    ids = [f"`{known.model_id}`" for preset, known in PRESETS.items() if f"`{preset}`" in start]
    rest = f"With weights: {', '.join(ids)}" if ids else _ACCEPTED
    return UNKNOWN_MODEL(name=name, help=f"{start}{rest}")


def _folder_without_config(path: Path) -> Problem:
    reason = "it has no config.json"
    help = _ACCEPTED
    files = sorted(file.name for file in path.glob("*.gguf"))
    if any((path / name).is_file() for name in ("bishare_config.json", "adapter_config.json")):
        reason = "it is an adapter"
        help = "give the model that the adapter was made for"
    elif files:
        help = f"give the file: `{path / files[0]}`"
    return NOT_A_MODEL(path=path, reason=reason, help=help)
