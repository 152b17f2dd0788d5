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
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Literal

from bishare_dsl.reading import real_path


def replace_file(path: Path, content: bytes) -> None:
    """Replace the content of a file in one step, keeping its mode. A link becomes a file.

    A device or a pipe, such as ``/dev/stdout``, is written to instead.

    Args:
        path: of the file.
        content: of the file.

    Raises:
        OSError: the system refused. The file is unchanged.
    """
    in_place = path.exists() and not path.is_file()
    # `/dev/stdout` is a link, possibly to a file.
    if in_place or path.parent.resolve() == Path("/dev"):
        path.write_bytes(content)
        return
    with _unfinished(path) as unfinished:
        _write(unfinished, content)
        if path.is_file():
            unfinished.chmod(path.stat().st_mode & 0o7777)
        unfinished.replace(path)


def new_file(path: Path, content: bytes) -> None:
    """Write a file that must not exist yet.

    Raises:
        OSError: the system refused, or a file is there.
    """
    with lock_name(path), _unfinished(path) as unfinished:
        remove_leftovers(path)
        _write(unfinished, content)
        _put(unfinished, path, None)


Standing = tuple[int, int, int] | None
"""What stands at a name: the device, number and time of change of a file or folder; None for nothing."""

ANY: Standing = (0, 0, 0)
"""Whatever stands at a name when a writer's turn comes, for writers that are told to replace it."""


def standing_at(path: Path) -> Standing:
    """Return what stands at a name when work begins, for `lock_name`. An empty folder counts as nothing."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return None
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_mtime_ns


@contextmanager
def new_folder(folder: Path, *, seen: Standing = None) -> Iterator[Path]:
    """Yield a new folder to write into, which gets the name ``folder`` at the end of the block.

    It is flushed to disk before. Other writers of the name wait until then. After an error or an
    interruption, ``folder`` is unchanged.

    Args:
        folder: the name.
        seen: what stood there when the work began, by `standing_at`, which is replaced and removed. What
            appears or changes later, even during the block, is never replaced.

    Raises:
        OSError: the system refused, or something else is there.
    """
    with lock_name(folder, seen=seen) as stands, _unfinished(folder) as unfinished:
        remove_leftovers(folder)
        unfinished.mkdir()
        yield unfinished
        for path in (*unfinished.rglob("*"), unfinished):
            _sync(path)
        _put(unfinished, folder, stands)


@contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """Yield a name for what will replace a file or folder. After an error, it is removed and not named."""
    unfinished = _aside(path, "new")
    try:
        yield unfinished
    except BaseException as error:
        discard(unfinished)
        if isinstance(error, OSError) and str(unfinished) in str(error.filename or unfinished):
            error.filename = os.fspath(path)
        raise


def _put(unfinished: Path, path: Path, stands: Standing) -> None:
    """Give a new file or folder its name, in place of ``stands``. Nothing else replaces folders.

    Raises:
        FileExistsError: something else has this name.
        OSError: the system refused. Nothing has changed.
    """
    if stands is not None and os.path.lexists(path):
        _swap(unfinished, path)
        if standing_at(unfinished) != stands:
            _swap(unfinished, path)
            raise _appeared(path)
    # A system without this call replaces no folder that is not empty, and links no second name.
    elif not _rename(unfinished, path, "new"):
        if unfinished.is_dir():
            unfinished.rename(path)
        else:
            path.hardlink_to(unfinished)
    _sync(path.parent)
    discard(unfinished)


def _swap(one: Path, other: Path) -> None:
    """Exchange two names, in one step if the system can."""
    if not _rename(one, other, "swap"):
        other.rename(aside := _aside(other, "old"))
        try:
            one.rename(other)
        except BaseException:
            aside.rename(other)
            raise
        aside.rename(one)


def _appeared(path: Path) -> FileExistsError:
    reason = "it appeared or changed meanwhile, and is left alone: give another name, or run again"
    return FileExistsError(errno.EEXIST, reason, os.fspath(path))


def _rename(one: Path, other: Path, how: Literal["swap", "new"]) -> bool:
    """Exchange two names, or rename what must not replace anything, in one step; False if the system cannot.

    Raises:
        FileExistsError: ``other`` exists and must be new.
    """
    import ctypes

    names = [os.fsencode(path) for path in (one, other)]
    current_folder = -100  # AT_FDCWD
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        flag = {"swap": 2, "new": 1}[how]
        done = libc.renameat2(current_folder, names[0], current_folder, names[1], flag) == 0
    elif sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        done = libc.renamex_np(*names, {"swap": 2, "new": 4}[how]) == 0
    else:
        return False
    if not done and how == "new" and ctypes.get_errno() == errno.EEXIST and standing_at(other):
        raise _appeared(other)
    return bool(done)


_held = threading.local()
"""The names that a thread has locked, each once."""


@contextmanager
def lock_name(path: Path, *, wait: bool = True, seen: Standing = ANY) -> Iterator[Standing]:
    """Let no other process or thread write a file or folder of this name inside the block.

    Yields what stands there.

    All who write into a folder, or in place of it, lock its name, and look at the folder only then. Windows
    and some network file systems lack such locks: there, write from one process at a time.

    Args:
        path: of the file or folder.
        wait: for another writer to end.
        seen: what may stand there, by `standing_at`, if anything does.

    Raises:
        FileExistsError: something else stands there.
        BlockingIOError: there is another writer, and ``wait`` is false.
        OSError: the system refused.
    """
    path = real_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    names: set[Path] = vars(_held).setdefault("names", set())
    if os.name == "nt" or path in names:
        yield _still(path, seen)
        return
    import fcntl

    lock = path.with_name(f".{path.name}.lock")
    with ExitStack() as ended:
        while True:
            try:
                descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            except OSError:
                if not path.exists():
                    raise
                lock = path
                descriptor = os.open(path, os.O_RDONLY)  # Nobody can replace it.
            ended.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError:
                pass  # The system has no locks.
            with suppress(FileNotFoundError):  # Its holder may have removed it.
                if lock == path or os.path.samestat(lock.stat(), os.fstat(descriptor)):
                    break
        if lock != path:
            ended.callback(lock.unlink, missing_ok=True)
        names.add(path)
        ended.callback(names.discard, path)
        yield _still(path, seen)


def _still(path: Path, seen: Standing) -> Standing:
    if (stands := standing_at(path)) not in (None, seen) and seen != ANY:
        raise _appeared(path)
    return stands


def remove_leftovers(path: Path) -> None:
    """Remove what killed writers have left. Lock the name before, or that of the folder that it is in."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}.new"):
        discard(left)


def check_writable(folder: Path) -> Standing:
    """Check that a folder can be written or created, without a trace, and return what stands there.

    Raises:
        OSError: the system refused.
    """
    place = folder
    while not folder.exists() and folder.parent != folder:
        folder = folder.parent
    trial = _aside(folder / "bishare", "new")
    try:
        trial.mkdir()
        trial.rmdir()
    finally:  # Ctrl-C may come as soon as it is there.
        with suppress(OSError):
            trial.rmdir()
    return standing_at(place)  # The trial changes the time of a folder that is there.


def is_half_written(name: str) -> bool:
    """Tell whether a file or folder of this name is what a killed writer has left."""
    return bool(re.fullmatch(r"\..+\.[0-9a-f]{8}\.new", name))


def _aside(path: Path, what: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{what}")


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
    _sync(path)


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
