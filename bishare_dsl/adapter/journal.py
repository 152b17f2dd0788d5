"""Write several files so that a kill at any moment leaves all of the old ones, or all of the new.

New contents are first written as ``NAME.new``. Then one file, the manifest, is replaced: that is the
commit, since it holds the digest of every other file. Last, each ``NAME.new`` is renamed to ``NAME``.
A reader takes, for each file, the one of the two that the manifest means; so it sees the old files
before the commit and the new ones after it, whether or not the renames came to pass.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from bishare_dsl.adapter.config import Digest

SUFFIX = ".new"


def digest_of(content: bytes) -> Digest:
    """The digest of a file with this content."""
    return Digest(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def matches(path: Path, digest: Digest) -> bool:
    """Whether ``path`` is a file with this digest.

    Raises:
        OSError: it is there and cannot be read.
    """
    if not path.is_file() or path.stat().st_size != digest.bytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == digest.sha256


def find(folder: Path, name: str, digest: Digest) -> Path | None:
    """The file that the manifest means by ``name``; None where neither candidate is it."""
    candidates = (folder / name, folder / f"{name}{SUFFIX}")
    return next((path for path in candidates if matches(path, digest)), None)


def commit(folder: Path, files: Mapping[str, bytes], manifest: tuple[str, bytes]) -> None:
    """Replace ``files`` and the manifest as one step.

    The folder exists, and nothing of an earlier commit is pending in it (see `finish`).

    Raises:
        OSError: the system refused; the files are as they were before, as far as a reader can tell.
    """
    for name, content in files.items():
        _write(folder / f"{name}{SUFFIX}", content)
    name, content = manifest
    _write(folder / f"{name}{SUFFIX}", content)
    _sync(folder)  # The new files' names must be on disk before the manifest that means them.
    (folder / f"{name}{SUFFIX}").replace(folder / name)
    _sync(folder)
    for name in files:
        (folder / f"{name}{SUFFIX}").replace(folder / name)
    _sync(folder)


def finish(folder: Path, manifest: Mapping[str, Digest]) -> None:
    """Do the renames that an interrupted commit left undone.

    Before the next commit, which would write over a ``NAME.new`` that the manifest already means.

    Raises:
        OSError: the system refused.
    """
    for name, digest in manifest.items():
        if find(folder, name, digest) == folder / f"{name}{SUFFIX}":
            (folder / f"{name}{SUFFIX}").replace(folder / name)
    _sync(folder)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Make the folder's names durable; Windows has no such call, and no need of it."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
