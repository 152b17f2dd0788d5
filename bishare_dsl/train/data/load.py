"""Read rows from a file, without executing its contents, or from a data set on the Hub."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bishare_dsl.diagnostics import DataError, one_line
from bishare_dsl.diagnostics.codes import data as codes
from bishare_dsl.diagnostics.codes.models import HUB_REFUSED, HUB_UNREACHABLE
from bishare_dsl.train.data.rows import Findings, Rows, place_of

# What Python says of wrong JSON, in plain words.
_JSON_REASONS = {
    "Expecting value": "a value is missing or misspelt",
    "Expecting property name enclosed in double quotes": "a name in double quotes is missing",
    "Expecting ',' delimiter": "a comma is missing",
    "Expecting ':' delimiter": "a colon is missing",
    "Unterminated string starting at": "a text has no closing quote; it begins",
    "Extra data": "the row is complete, and more follows",
    "Invalid control character at": "a tab stands in a text, where `\\t` should",
}


def load_rows(
    source: str | os.PathLike[str], *, split: str = "train", subset: str | None = None
) -> Rows:
    """Read rows from a file, or from a data set on the Hub.

    Args:
        source: a file (.json, .jsonl, .ndjson, .csv, .parquet), or the id of a data set on the Hub. JSON is
            an array of objects, or an object with such an array in ``data``.
        split: the split of a Hub data set, such as ``"train[:1000]"``; ignored for files.
        subset: the configuration of a Hub data set with several.

    Raises:
        DataError: there is no such file (BS701) or reachable data set (BS504, BS505, BS703), it is
            unreadable (BS704, BS705), rows are unreadable (BS706; the first are listed), or it is empty
            (BS707).
    """
    path = Path(source)
    # `datasets` reads `csv` as all CSV files in the current folder, so an id needs an owner.
    is_id = isinstance(source, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None
    if path.is_file():
        rows = _read_file(path)
    elif is_id and path.suffix not in _READERS and not path.exists():
        rows = _read_hub(str(source), split, subset)
    else:
        help = "give one of the files in it" if path.is_dir() else None
        raise DataError(codes.NO_SUCH_DATA(source=source, help=help))
    if not rows:
        raise DataError(codes.NO_ROWS(name=rows.name))
    return rows


def _read_file(path: Path) -> Rows:
    kind, table, numbers = path.suffix.lower(), [], []
    if kind not in _READERS:
        help = "known endings: " + ", ".join(_READERS)
        raise DataError(codes.UNKNOWN_FILE(path=path, help=help))
    findings = Findings(str(path))
    try:
        with path.open("rb") as file:
            content = b"" if kind == ".parquet" else file.read().removeprefix(b"\xef\xbb\xbf")
        if b"\0" in content[:4]:
            reason = "it is UTF-16, or not a text"
            raise DataError(codes.UNREADABLE(path=path, reason=reason, help="save it as UTF-8"))
        if kind == ".json" and _is_lines(content):  # JSON Lines are often named .json.
            kind = ".jsonl"
        by_line = kind not in (".json", ".parquet")
        for number, row in _READERS[kind](path, content):
            if isinstance(row, dict):
                table.append(row)
                numbers.append(number)
                continue
            place = place_of(str(path), number, by_line=by_line)
            what = f"the {'line' if by_line else 'row'} is not an object"
            reason = row if isinstance(row, _Fault) else what
            findings.add(codes.BAD_LINE(place=place, reason=reason))
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        problem = codes.BAD_LINE(place=f"{path}:{line}", reason="the line is not UTF-8")
        raise DataError(problem) from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(codes.UNREADABLE(path=path, reason=_reason(error))) from error
    findings.raise_any()
    return Rows(str(path), table, numbers, by_line, range(len(table)))


class _Fault(str):
    """What is wrong with a row, in its place."""


def _reason(error: Exception) -> _Fault:
    """Say what is wrong with a file or a line."""
    if not isinstance(error, json.JSONDecodeError):
        return _Fault(one_line(error))
    line, rest = error.doc.strip(), error.doc[error.pos :].strip()
    if not rest:
        return _Fault("it ends before its last bracket or quote is closed")
    if rest == "," and error.msg == "Extra data":
        return _Fault("a comma ends the line: leave it out")
    if line.startswith("{'"):
        return _Fault("it is a dict of Python: write rows with `json.dumps`, in double quotes")
    at = f"column {error.colno}"
    if "\n" in line:
        at = f"line {error.lineno}, {at}"
    return _Fault(f"{_JSON_REASONS.get(error.msg, error.msg)} at {at}")


def _is_lines(content: bytes) -> bool:
    """Return whether the first line is an object and more lines follow."""
    first, _, rest = content.strip().partition(b"\n")
    try:
        return bool(rest) and isinstance(json.loads(first.rstrip(b"\r,")), dict)
    except (ValueError, RecursionError):
        return False


def _read_json(path: Path, content: bytes) -> Iterable[tuple[int, Any]]:
    value = json.loads(content.decode())
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    if isinstance(value, list):
        return enumerate(value, 1)
    raise ValueError("it is not an array of rows, nor an object with one in `data`")


def _read_lines(path: Path, content: bytes) -> Iterator[tuple[int, Any]]:
    # Not `splitlines`: a JSON string may contain U+2028 and similar characters unescaped.
    for number, line in enumerate(content.split(b"\n"), 1):
        try:
            if line.strip():
                yield number, json.loads(line.decode())
        except UnicodeDecodeError as error:
            yield number, _Fault(f"byte {error.start + 1} of the line is not UTF-8")
        except (ValueError, RecursionError) as error:
            yield number, _reason(error)


def _read_csv(path: Path, content: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the nonblank rows, each with its first line number."""
    limit = csv.field_size_limit(2**31 - 1)  # The default is 128 KiB per field.
    reader = csv.reader(io.StringIO(content.decode(), newline=""), strict=True)
    number, header = 1, list[str]()
    try:
        for cells in reader:
            if cells and not header:
                header = cells
                if len(cells) == 1 and re.search(r"[;\t]", cells[0]):
                    yield number, _Fault("separate columns by commas, not semicolons or tabs")
                    return
                if len({*header}) < len(header) or "" in header:
                    yield number, _Fault(f"the columns need different names: {', '.join(header)}")
                    return
            elif cells and len(cells) != len(header):
                yield number, _Fault(f"it has {len(cells)} columns, the header {len(header)}")
            elif cells:
                yield number, dict(zip(header, cells, strict=True))
            number = reader.line_num + 1
    except csv.Error as error:
        yield number, _Fault(one_line(error))
    finally:
        csv.field_size_limit(limit)


def _read_parquet(path: Path, content: bytes) -> Iterable[tuple[int, Any]]:
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    try:
        return enumerate(parquet.read_table(path).to_pylist(), 1)
    except pyarrow.ArrowException as error:
        raise ValueError(one_line(error)) from error


_READERS: dict[str, Any] = {
    ".json": _read_json,
    ".jsonl": _read_lines,
    ".ndjson": _read_lines,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}

ENDINGS = tuple(_READERS)
"""The suffixes of data files."""


def _read_hub(name: str, split: str, subset: str | None) -> Rows:
    """Read the rows of a split with `datasets`, memory-mapped from its cache."""
    import datasets

    try:
        table = datasets.load_dataset(name, subset, split=split)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise DataError(HUB_REFUSED(name=name, reason=one_line(error))) from error
    except ConnectionError as error:
        help = "there is no file of this name either; data sets in the cache (`HF_HOME`) work"
        raise DataError(HUB_UNREACHABLE(name=name, reason=one_line(error), help=help)) from error
    except Exception as error:
        # `datasets`, its file systems and its formats raise exceptions of many types.
        raise DataError(codes.NO_SUCH_PART(name=name, reason=one_line(error))) from error
    numbers = range(1, len(table) + 1)
    return Rows(f"{name} ({split})", table, numbers, False, range(len(table)))
