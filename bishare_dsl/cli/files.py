"""Whether a command may write a folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

from bishare_dsl.cli.report import CommandError
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import usage as codes
from bishare_dsl.version import __version__


def check_out(folder: Path, *, force: bool, mark: str, only_listed: bool = False) -> None:
    """Check that a command may write a folder: it is new, or empty, or has the file ``mark`` in it and
    ``force`` is given; and, with ``only_listed``, nothing but what `write_mark` has listed there.

    Raises:
        AdapterError: it exists (BS618).
        CommandError: it exists, and is not of the kind that ``force`` replaces (BS905).
    """
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise CommandError(codes.NOT_REPLACEABLE(folder=folder, why="it is a file"))
    names = {path.name for path in folder.iterdir()}
    if not names:
        return
    why = None
    if mark not in names:
        why = f"it has no {mark}, so the command did not write it"
    elif only_listed and (foreign := sorted(names - {mark} - _listed(folder / mark))):
        why = f"the command did not write `{foreign[0]}`, which is in it"
    if not force:
        from bishare_dsl.diagnostics.codes.adapter import FOLDER_EXISTS

        help = "give another `--out`" if why else "`--force` replaces it, or give another `--out`"
        raise AdapterError(FOLDER_EXISTS(folder=folder, help=help))
    if why:
        raise CommandError(codes.NOT_REPLACEABLE(folder=folder, why=why))


def write_mark(folder: Path, mark: str, **fields: str) -> None:
    """Leave a file in a folder that a command has written, with the names of all that is there."""
    files = sorted(path.name for path in folder.iterdir())
    content = {"bishare": __version__, **fields, "files": files}
    (folder / mark).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _listed(path: Path) -> set[str]:
    try:
        return set(json.loads(path.read_bytes())["files"])
    except (OSError, ValueError, TypeError, KeyError):
        return set()
