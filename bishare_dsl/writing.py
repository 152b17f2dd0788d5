"""Writing files and folders so that whatever happens, the old is there or the new: never a half.

| to write | |
|---|---|
| a file | `replace_file` |
| a folder as a whole | `new_folder`, or `temporary_path` and `move_into_place`; and `remove_folder` |
| some files of a folder that has others too | `lock_folder`, `finish_commit`, `commit`; `content_of` reads |

What is half written has a name of its own, `.NAME.TOKEN.new`, so that no two writers have the same one, and
is never opened where something is already: no link is followed. A kill may leave it; see `parse_leftover`.

**Several files as one step.** New contents are first written as ``NAME.new``. Then one file, the manifest,
is replaced: that is the commit, since it holds the digest of every other file. Last, each ``NAME.new`` is
renamed to ``NAME``. A reader takes, for each file, the one of the two that the manifest means; so it sees the
old files before the commit and the new ones after it, whether or not the renames came to pass.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, NonNegativeInt

from bishare_dsl.reading import read_file

SUFFIX = ".new"

_ASIDE = re.compile(r"\.(.+?)(?:\.[0-9a-f]{8})?\.(new|old|gone)")


class Digest(BaseModel):
    """The size of a file in bytes, and its SHA-256 in hexadecimal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: NonNegativeInt
    sha256: str


def digest_of(content: bytes) -> Digest:
    """Return the digest of a file with this content."""
    return Digest(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def replace_file(path: Path, content: bytes) -> None:
    """Replace the content of a file in one step; its mode stays, and a link becomes a file.

    A device or a pipe, such as ``/dev/stdout``, is written to, and stays.

    Raises:
        OSError: the system refused; the file is as it was.
    """
    in_place = path.exists() and not path.is_file()
    if in_place or path.parent.resolve() == Path(
        "/dev"
    ):  # `/dev/stdout` is a link, to a file perhaps
        path.write_bytes(content)
        return
    new = _aside(path, "new")
    try:
        _write(new, content)
        if path.is_file():
            new.chmod(path.stat().st_mode & 0o7777)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to write into, which takes the place of ``folder`` when all has gone well.

    It is on the disk before it has its name. Where something goes wrong, or the user interrupts, ``folder``
    is as it was.

    Raises:
        OSError: the system refused.
    """
    new = temporary_path(folder)
    new.mkdir(parents=True)
    try:
        yield new
        move_into_place(new, folder)
    except BaseException:
        discard(new)
        raise


def temporary_path(path: Path) -> Path:
    """Make up a name beside a path, for what `move_into_place` puts there; no two calls give the same."""
    return _aside(path, "new")


def move_into_place(new: Path, folder: Path) -> None:
    """Let a folder that is written take the place of another, which need not be there.

    Raises:
        OSError: the system refused; both are as they were.
    """
    for path in (*new.rglob("*"), new):
        _sync(path)
    old = _aside(folder, "old")
    if os.path.lexists(folder):
        folder.rename(old)
    try:
        new.rename(folder)
    except BaseException:
        if os.path.lexists(old):
            old.rename(folder)
        raise
    _sync(folder.parent)
    discard(old)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that it is never there in part under its name.

    Raises:
        OSError: the system refused; the folder is as it was.
    """
    discard(folder.rename(_aside(folder, "gone")))


def parse_leftover(path: Path) -> tuple[str, str] | None:
    """Return what a kill has left: the name it was for, and ``new``, ``old`` or ``gone``; else None."""
    found = _ASIDE.fullmatch(path.name)
    return (found[1], found[2]) if found else None


def check_writable(folder: Path) -> None:
    """Check that a folder can be written, or made where it is not there. Nothing is left.

    Raises:
        OSError: it cannot.
    """
    while not folder.exists() and folder.parent != folder:
        folder = folder.parent
    trial = _aside(folder / "bishare", "new")
    trial.mkdir()
    trial.rmdir()


# Several files as one step --------------------------------------------------------------------------


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Wait until nobody else commits to a folder, and keep it so for a block.

    Windows and some network file systems have no such lock; there one process may write at a time.

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


def content_of(folder: Path, name: str, digest: Digest) -> bytes | None:
    """Return the content that the manifest means by ``name``; None where neither candidate has it.

    Raises:
        OSError: a candidate is there and cannot be read.
    """
    pending = folder / f"{name}{SUFFIX}"
    for path in (
        folder / name,
        pending,
        folder / name,
    ):  # It may have been renamed in the meantime.
        with suppress(FileNotFoundError):
            if path.is_file() and path.stat().st_size == digest.bytes:
                content = read_file(folder, str(path.relative_to(folder)), digest.bytes)
                if digest_of(content) == digest:
                    return content
    return None


def commit(folder: Path, files: Mapping[str, bytes], manifest: tuple[str, bytes]) -> None:
    """Replace ``files`` and the manifest as one step.

    The folder is locked (`lock_folder`), and nothing of an earlier commit is pending in it (`finish_commit`).

    Raises:
        OSError: the system refused; the files are as they were before, as far as a reader can tell.
    """
    name, content = manifest
    pending = [folder / f"{file}{SUFFIX}" for file in (*files, name)]
    try:
        for path, written in zip(pending, (*files.values(), content), strict=True):
            path.unlink(missing_ok=True)  # Left by a kill; or a link, and whose it is nobody knows.
            _write(path, written)
        _sync(folder)  # The new files' names must be on disk before the manifest that means them.
        pending[-1].replace(folder / name)
    except (Exception, KeyboardInterrupt):
        for path in pending:
            path.unlink(missing_ok=True)
        raise
    _sync(folder)
    for file in files:
        (folder / f"{file}{SUFFIX}").replace(folder / file)
    _sync(folder)


def finish_commit(folder: Path, manifest: Mapping[str, Digest]) -> None:
    """Do the renames that an interrupted commit left undone.

    Before the next commit, which would write over a ``NAME.new`` that the manifest already means.

    Raises:
        OSError: the system refused.
    """
    for name, digest in manifest.items():
        pending = folder / f"{name}{SUFFIX}"
        if pending.is_file() and digest_of(pending.read_bytes()) == digest:
            pending.replace(folder / name)
    _sync(folder)


def _aside(path: Path, what: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{what}")


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    """Ensure that a file's content, or a folder's names, are on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # It has no such call, and no need of it.
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
