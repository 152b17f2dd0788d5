"""Writing so that whatever happens, the old is there or the new: never a half."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bishare_dsl.cli.report import CommandError
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import usage as codes


def replace_file(path: Path, content: bytes) -> None:
    """Give a file other content in one step; its mode stays, and a link to it stays a link.

    Raises:
        OSError: the system refuses; the file is as it was.
    """
    path = path.resolve()
    mode = path.stat().st_mode
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    new = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.chmod(mode & 0o7777)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def check_out(folder: Path, *, force: bool, mark: str) -> None:
    """Return if a command may write a folder: it is new, or empty, or has the file ``mark`` in it and
    ``force`` is given.

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
    if not force:
        from bishare_dsl.diagnostics.codes.adapter import FOLDER_EXISTS

        raise AdapterError(
            FOLDER_EXISTS(folder=folder, help="`--force` replaces it, or give another `--out`")
        )
    if mark not in names:
        why = f"it has no {mark}, so the command did not write it"
        raise CommandError(codes.NOT_REPLACEABLE(folder=folder, why=why))


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of ``folder`` when all has gone well.

    Where something goes wrong, or the user interrupts, ``folder`` is as it was.
    """
    target = folder.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside it, so that moving it into place is one rename; and in a folder of its own, for mkdtemp's
    # are closed to others, which the result should not be.
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        made = scratch / "new"
        made.mkdir()
        yield made
        if target.exists():
            target.rename(scratch / "old")
        try:
            made.rename(target)
        except BaseException:
            if (scratch / "old").exists():
                (scratch / "old").rename(target)
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
