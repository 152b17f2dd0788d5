"""Reading the files of folders that come from strangers: each is a plain file of its folder, and no larger
than what is said of it. No pipe is waited for, no device read, no link followed to somewhere else.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

MAX_CONFIG = 2**26
"""Bytes of a config, more than that of any adapter has."""

MAX_VALUES = 2**20
"""Values in a text of JSON, more than any config has: each takes hundreds of bytes once it is read."""

# A pipe is opened without waiting for its writer; Windows has neither these names nor such pipes.
_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_BINARY", 0)
)


def parse_json(text: str | bytes) -> Any:
    """Return what a stranger's text of JSON means.

    Raises:
        ValueError: it is no JSON, nested too deep, or of more than `MAX_VALUES` values.
    """
    comma, colon = (b",", b":") if isinstance(text, bytes) else (",", ":")
    if text.count(comma) + text.count(colon) > MAX_VALUES:  # type: ignore[arg-type]
        raise ValueError(f"it has more than {MAX_VALUES:,} values")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def real_path(path: str | os.PathLike[str]) -> Path:
    """Return where a path leads. A link to itself leads to itself, where `Path.resolve` has a bare error."""
    return Path(os.path.realpath(path))


def read_file(folder: str | os.PathLike[str], name: str, limit: int) -> bytes:
    """Read a file of a folder.

    In the Hub's cache a file of a snapshot is a link to a blob of the same repository; any other link that
    leaves the folder is refused.

    Args:
        folder: may be a link itself.
        name: of the file, which may be in a folder below.
        limit: the most bytes that it may have.

    Raises:
        FileNotFoundError: it is not there.
        OSError: it leaves the folder, is not a plain file, is too large, or the system refuses.
    """
    root = real_path(folder)
    path = Path(folder, name)
    real = Path(os.path.realpath(path, strict=True))
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    if not (real.is_relative_to(root) or real.is_relative_to(blobs)):
        raise _refused(path, "it is a link to somewhere else")
    descriptor = os.open(real, _FLAGS)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise _refused(path, "it is not a plain file")
        if found.st_size > limit:
            raise _refused(path, f"it has {found.st_size:,} bytes, and may have {limit:,}")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(found.st_size)  # Though it may have grown since.
    finally:
        os.close(descriptor)


def _refused(path: Path, reason: str) -> OSError:
    return OSError(errno.EINVAL, reason, str(path))
