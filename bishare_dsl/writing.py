"""Write files and folders atomically: after any failure, the old or the new content is there.

Writers of a name take turns: each holds the lock file `.NAME.lock` beside it. Unfinished files and folders
are `.NAME.TOKEN.new`, created exclusively, so no link is followed. A kill may leave them; the next writer of
the name removes them, because nobody else writes there.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import secrets
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

from bishare_dsl.reading import real_path


def replace_file(path: Path, content: bytes, *, new: bool = False) -> None:
    """Replace the content of a file in one step, keeping its mode. A link becomes a file.

    A device or a pipe, such as ``/dev/stdout``, is written to instead.

    Args:
        path: of the file.
        content: of the file.
        new: refuse to replace a file.

    Raises:
        OSError: the system refused, or a file is there and must be new. It is unchanged.
    """
    in_place = path.exists() and not path.is_file()
    # `/dev/stdout` is a link, possibly to a file.
    if in_place or path.parent.resolve() == Path("/dev"):
        path.write_bytes(content)
        return
    unfinished = _aside(path, "new")
    try:
        _write(unfinished, content)
        if path.is_file():
            unfinished.chmod(path.stat().st_mode & 0o7777)
        _put(unfinished, path, replace=not new)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = os.fspath(path)  # `write` names no file, and users know no other.
        raise


def new_file(path: Path, content: bytes) -> None:
    """Write a file that must not exist yet.

    Raises:
        OSError: the system refused, or a file is there.
    """
    with lock_name(path):
        remove_leftovers(path)
        replace_file(path, content, new=True)


@contextmanager
def new_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a new folder to write into, which gets the name ``folder`` at the end of the block.

    It is flushed to disk before. Other writers of the name wait until then. After an error or an
    interruption, ``folder`` is unchanged.

    Args:
        folder: the name.
        replace: whether to replace a folder of this name, which is then removed. Otherwise a folder that
            is not empty is never replaced, even if it appears during the block.

    Raises:
        OSError: the system refused, or a folder is there and must not be replaced.
    """
    with lock_name(folder):
        remove_leftovers(folder)
        (unfinished := _aside(folder, "new")).mkdir()
        try:
            yield unfinished
            for path in (*unfinished.rglob("*"), unfinished):
                _sync(path)
            _put(unfinished, folder, replace=replace)
        except BaseException as error:
            discard(unfinished)
            if isinstance(error, OSError):
                error.filename = error.filename or os.fspath(folder)
            raise


def _put(unfinished: Path, path: Path, *, replace: bool) -> None:
    """Give a new file or folder its name: the one place where something is replaced.

    Raises:
        FileExistsError: something has this name, and must not be replaced.
        OSError: the system refused. Nothing has changed.
    """
    if not replace:
        # A system without this call replaces no folder that is not empty, and links no second name.
        if not _rename(unfinished, path, "new"):
            if unfinished.is_dir():
                unfinished.rename(path)
            else:
                path.hardlink_to(unfinished)
                unfinished.unlink()
    elif not unfinished.is_dir() or not os.path.lexists(path):
        unfinished.replace(path)
    elif _rename(unfinished, path, "swap"):
        _sync(path.parent)
        discard(unfinished)
    else:
        path.rename(old := _aside(path, "old"))
        try:
            unfinished.rename(path)
        except BaseException:
            old.rename(path)
            raise
        discard(old)
    if path.is_dir():
        _sync(path.parent)


def _rename(one: Path, other: Path, how: Literal["swap", "new"]) -> bool:
    """Exchange two names, or rename what must not replace anything, in one step; False if the system cannot.

    Raises:
        FileExistsError: ``other`` exists and must be new.
    """
    import ctypes

    names, here = [os.fsencode(path) for path in (one, other)], -100  # AT_FDCWD
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        flag = {"swap": 2, "new": 1}[how]
        done = libc.renameat2(here, names[0], here, names[1], flag) == 0
    elif sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        done = libc.renamex_np(*names, {"swap": 2, "new": 4}[how]) == 0
    else:
        return False
    if not done and how == "new" and ctypes.get_errno() == errno.EEXIST:
        if other.is_dir() and not any(other.iterdir()):
            return False
        raise FileExistsError(errno.EEXIST, "it has appeared meanwhile", os.fspath(other))
    return bool(done)


_held = threading.local()
"""The names that a thread has locked, each once."""


@contextmanager
def lock_name(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Let no other process or thread write a file or folder of this name inside the block.

    All who write into a folder, or in place of it, lock its name, and look at the folder only then. Windows
    and some network file systems lack such locks: there, write from one process at a time.

    Args:
        path: of the file or folder.
        wait: for another writer to end.

    Raises:
        BlockingIOError: there is another writer, and ``wait`` is false.
        OSError: the system refused.
    """
    path = real_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    names: set[Path] = vars(_held).setdefault("names", set())
    if os.name == "nt" or path in names:
        yield
        return
    import fcntl

    lock = path.with_name(f".{path.name}.lock")
    while True:
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError:
            if not path.exists():
                raise
            lock, descriptor = path, os.open(path, os.O_RDONLY)  # Nobody can replace it.
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise
        except OSError:  # The system has no locks.
            pass
        if lock == path or (lock.exists() and os.path.samestat(lock.stat(), os.fstat(descriptor))):
            break
        os.close(descriptor)  # Its holder has removed it.
    with ExitStack() as ended:
        ended.callback(os.close, descriptor)
        if lock != path:
            ended.callback(lock.unlink, missing_ok=True)
        names.add(path)
        ended.callback(names.discard, path)
        yield


def remove_leftovers(path: Path) -> None:
    """Remove what killed writers have left. Lock the name before, or that of the folder that it is in."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}.new"):
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


def is_half_written(name: str) -> bool:
    """Tell whether a file or folder of this name is what a killed writer has left."""
    return bool(re.fullmatch(r"\..+\.[0-9a-f]{8}\.new", name))


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
