"""Check whether a command may write a folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

from bishare_dsl.cli.report import CommandError
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import usage as codes
from bishare_dsl.diagnostics.codes.adapter import FOLDER_EXISTS
from bishare_dsl.reading import real_path
from bishare_dsl.writing import Standing, is_half_written, standing_at


def check_out(folder: Path, mark: str | None = None, *, force: bool = False) -> Standing:
    """Check that a folder is new or empty, or that ``force`` is set and the folder contains ``mark``.

    Returns:
        What the command may replace there when it is through.

    Raises:
        AdapterError: the folder exists, or a file of its name (BS618).
        CommandError: the folder is not of the kind that ``force`` replaces (BS905).
    """
    from bishare_dsl.folder.files import CONFIG, TENSORS

    if not os.path.lexists(folder):
        return None
    if not folder.is_dir():
        raise AdapterError(FOLDER_EXISTS(folder=folder))  # `--force` replaces folders.
    seen = standing_at(folder)
    names = {path.name for path in folder.iterdir()}
    pending = {name for name in names if is_half_written(name)}
    if CONFIG not in names and any(name.startswith(f".{CONFIG}.") for name in pending):
        pending.add(TENSORS)  # A first save that was killed between the two files.
    names -= pending
    if names and not force:
        ours = "`--force` replaces it, or " if mark in names else ""
        raise AdapterError(FOLDER_EXISTS(folder=folder, help=f"{ours}give another `--out`"))
    if names and mark not in names:
        why = f"it has no {mark}, so the command did not write it"
        raise CommandError(codes.NOT_REPLACEABLE(folder=folder, why=why))
    return seen


def find_adapters(folder: Path) -> list[Path]:
    """Return the folders of adapters and libraries at a path, or one or two levels below it.

    They are sorted by name; checkpoints of runs are omitted, and links to folders that are listed already.
    """
    from bishare_dsl.folder.files import CONFIG, place_of

    place, _ = place_of(folder)
    if (place / CONFIG).is_file():
        return [folder]
    found: dict[Path, Path] = {}
    for file in sorted([*place.glob(f"*/{CONFIG}"), *place.glob(f"*/*/{CONFIG}")]):
        names = file.parent.relative_to(place).parts
        aside = any(re.match(r"\.|checkpoint-\d+$", name) for name in names)
        if not aside and not (len(names) > 1 and (file.parents[1] / CONFIG).is_file()):
            found.setdefault(real_path(file.parent), file.parent)
    return [*found.values()]
