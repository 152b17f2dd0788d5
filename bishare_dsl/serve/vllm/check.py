"""Whether an adapter can be served, asked before its request reaches the engine.

vLLM reads an adapter in the middle of a step when it has left the host's cache, and a folder that is damaged
by then would stop the engine. So each request looks at the files first; those that are as they were when they
were found good are not read again.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from bishare_dsl.adapter import old_formats
from bishare_dsl.adapter.files import CONFIG, TENSORS, own_file, place_of
from bishare_dsl.diagnostics import BishareError, one_line
from bishare_dsl.export import peft
from bishare_dsl.models import architecture_of
from bishare_dsl.serve.vllm.folder import Stamp, check_plan, read_for
from bishare_dsl.serve.vllm.settings import PLAN

if TYPE_CHECKING:
    from bishare_dsl.models.site import Architecture

_Marks = tuple[tuple[int, int, int] | None, ...]
_good: dict[tuple[str, str], _Marks] = {}


def check_folder(name: str, folder: str | Path, base: str) -> None:
    """Check that an adapter, bishare's or PEFT's, can be served as it stands in its folder.

    Args:
        name: of the adapter.
        folder: one of this machine; what is not there and never was is left to vLLM.
        base: the name or the folder of what is served.

    Raises:
        ValueError: it cannot be served; vLLM's server makes an answer of that.
    """
    key = os.fspath(folder), base
    marks = _marks(folder)
    if _good.get(key) == marks or not (any(marks) or key in _good):
        return
    try:
        if Stamp.of(folder) is None:
            with safe_open(Path(folder, peft.TENSORS), framework="pt"):
                pass  # Its header fits its size. The rest is vLLM's to read.
        else:
            # Its plan is known here by the variable alone: `--additional-config` is the engine's.
            stored = read_for(folder, _base(base))
            stored.stored()
            if named := os.environ.get(PLAN):
                check_plan(folder, stored.plan, read_for(named, _base(base)).plan)
    except (BishareError, OSError, SafetensorError) as error:
        reason = error if isinstance(error, BishareError) else one_line(error)
        raise ValueError(f"LoRA adapter '{name}' cannot be served: {reason}") from error
    _good[key] = marks


def _marks(folder: str | Path) -> _Marks:
    """Return what tells that the files of an adapter are the ones that they were."""
    place, name = place_of(folder)
    files = [CONFIG, TENSORS, old_formats.CONFIG, old_formats.TENSORS]
    files += [] if name is None else [own_file(name)]
    return tuple(_mark(place / file) for file in files)


def _mark(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


@cache
def _base(name: str) -> Architecture:
    return architecture_of(name)
