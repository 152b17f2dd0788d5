"""Write files and folders atomically: after any failure, the old or the new content is there.

Unfinished files have unique names, `.NAME.TOKEN.new`, and are created exclusively, so no link is
followed. A kill may leave them.
"""

from __future__ import annotations

import glob
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Replace the content of a file in one step, keeping its mode. A link becomes a file.

    A device or a pipe, such as ``/dev/stdout``, is written to instead.

    Raises:
        OSError: the system refused. The file is unchanged.
    """
    in_place = path.exists() and not path.is_file()
    # `/dev/stdout` is a link, possibly to a file.
    if in_place or path.parent.resolve() == Path("/dev"):
        path.write_bytes(content)
        return
    new = _aside(path, "new")
    try:
        _write(new, content)
        if path.is_file():
            new.chmod(path.stat().st_mode & 0o7777)
        new.replace(path)
    except BaseException as error:
        new.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = os.fspath(path)  # `write` names no file, and users know no other.
        raise


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder to write into, which replaces ``folder`` at the end of the block.

    The new folder is flushed to disk before it gets its name. After an error or an interruption,
    ``folder`` is unchanged. Leftovers of killed writers are removed.

    Raises:
        OSError: the system refused.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = _aside(folder, "new")
    with ExitStack() as held:
        with lock_folder(folder.parent):
            half_written = _half_written(glob.escape(folder.name))
            for left in folder.parent.glob(half_written):
                if not left.is_symlink() and left.is_dir() and _is_abandoned(left):
                    discard(left)
            for mark in folder.parent.glob(half_written.removesuffix(".new") + _MARK):
                _is_abandoned(mark.with_suffix(".new"))  # Killed before it had a folder.
            # Writers may lock the new folder themselves.
            mark = new.with_suffix(_MARK)
            mark.touch(exist_ok=False)
            held.callback(mark.unlink, missing_ok=True)
            held.enter_context(lock_folder(mark))
            new.mkdir()
        try:
            yield new
            _move_into_place(new, folder)
        except BaseException as error:
            discard(new)
            if isinstance(error, OSError):
                error.filename = error.filename or os.fspath(folder)
            raise


def _move_into_place(new: Path, folder: Path) -> None:
    """Replace a folder, if it exists, by a new one.

    Raises:
        OSError: the system refused. Both folders are unchanged.
    """
    for path in (*new.rglob("*"), new):
        _sync(path)
    old = _aside(folder, "old")
    if os.path.lexists(folder):
        if _exchange(new, folder):
            _sync(folder.parent)
            discard(new)
            return
        folder.rename(old)
    try:
        new.rename(folder)
    except BaseException:
        if os.path.lexists(old):
            old.rename(folder)
        raise
    _sync(folder.parent)
    discard(old)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two files or folders in one step, or return False if the system cannot.

    The caller then renames twice, and a kill in between leaves the old folder as ``.NAME.TOKEN.old``.
    """
    import ctypes

    names = [os.fsencode(path) for path in (one, other)]
    libc, swap, here = ctypes.CDLL(None), 2, -100  # RENAME_EXCHANGE or RENAME_SWAP; AT_FDCWD.
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        return bool(libc.renameat2(here, names[0], here, names[1], swap) == 0)
    if sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        return bool(libc.renamex_np(*names, swap) == 0)
    return False


_MARK = ".lock"
"""The suffix of the file that the writer of a new folder locks while it runs."""


def _is_abandoned(new: Path) -> bool:
    """Return whether the writer of a new folder is gone. Always False on systems without locks."""
    if os.name == "nt":
        return False
    import fcntl

    mark = new.with_suffix(_MARK)
    try:
        descriptor = os.open(mark, os.O_RDONLY)
    except FileNotFoundError:  # The writer was killed in between, or is an older version.
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    mark.unlink(missing_ok=True)
    return True


def remove_leftovers(path: Path) -> None:
    """Remove leftovers of a killed `replace_file`. No other process may be writing that file."""
    for left in path.parent.glob(_half_written(path.name)):
        discard(left)


def check_writable(folder: Path) -> None:
    """Check that a folder can be written or created, without leaving a trace.

    Raises:
        OSError: the system refused.
    """
    while not folder.exists() and folder.parent != folder:
        folder = folder.parent
    trial = _aside(folder / "bishare", "new")
    trial.mkdir()
    trial.rmdir()


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock a folder against other writers for the duration of a block.

    Windows and some network file systems lack such locks: there, write from one process at a time.

    Raises:
        OSError: the folder cannot be opened.
    """
    if os.name == "nt":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def is_half_written(name: str) -> bool:
    """Tell whether a file or folder of this name is what a killed writer has left."""
    return bool(re.fullmatch(r"\..+\.[0-9a-f]{8}\.new", name))


def _half_written(name: str) -> str:
    """Return a pattern that matches the names of unfinished files from `_aside`."""
    return f".{name}.{'[0-9a-f]' * 8}.new"


def _aside(path: Path, what: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{what}")


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    """Flush a file's content, or a folder's names, to disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows has no such call, and needs none.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard(path: Path) -> None:
    """Remove a file, a link or a folder, as far as the system allows."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
