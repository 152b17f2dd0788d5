"""Read files of untrusted folders: only plain files inside the folder, up to a size limit.

Pipes, devices and links that leave the folder are refused.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

MAX_CONFIG = 2**26
"""The largest config in bytes, more than any adapter needs."""

MAX_VALUES = 2**20
"""The largest number of values in JSON, more than any config has. Each takes hundreds of bytes in memory."""

# Open a pipe without waiting for its writer. Windows has neither these flags nor such pipes.
_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_BINARY", 0)
)


def parse_json(text: str | bytes, *, limited: bool = True) -> Any:
    """Parse untrusted JSON.

    Args:
        text: the JSON.
        limited: False takes any size, as of a user's training data.

    Raises:
        ValueError: the text is not JSON, too deeply nested, or has more than `MAX_CONFIG` characters or
            `MAX_VALUES` values.
    """
    if limited and len(text) > MAX_CONFIG:
        raise ValueError(f"it has more than {MAX_CONFIG:,} characters")
    comma, colon = (b",", b":") if isinstance(text, bytes) else (",", ":")
    if limited and text.count(comma) + text.count(colon) > MAX_VALUES:  # type: ignore[arg-type]
        raise ValueError(f"it has more than {MAX_VALUES:,} values")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def real_path(path: str | os.PathLike[str]) -> Path:
    """Resolve a path. A link to itself is returned unchanged, where `Path.resolve` raises an error."""
    return Path(os.path.realpath(path))


def read_file(folder: str | os.PathLike[str], name: str, limit: int) -> bytes:
    """Read a file of a folder.

    In the Hub's cache, files of a snapshot are links to blobs of the same repository. Any other link
    that leaves the folder is refused.

    Args:
        folder: the folder, which may be a link.
        name: the path of the file below the folder.
        limit: the largest allowed size in bytes.

    Raises:
        FileNotFoundError: the file is missing.
        OSError: the file is outside of the folder, not a plain file, or too large, or the system refuses.
    """
    root = real_path(folder)
    path = Path(folder, name)
    real = Path(os.path.realpath(path, strict=True))
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    if not (real.is_relative_to(root) or real.is_relative_to(blobs)):
        raise _refused(path, "it is a link to somewhere else")
    descriptor = os.open(real, _FLAGS)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _refused(path, "it is not a plain file")
        if status.st_size > limit:
            raise _refused(path, f"it has {status.st_size:,} bytes, and may have {limit:,}")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(status.st_size)  # It may have grown since.
    finally:
        os.close(descriptor)


def _refused(path: Path, reason: str) -> OSError:
    return OSError(errno.EINVAL, reason, str(path))
