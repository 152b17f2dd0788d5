"""Read a file of rows. Nothing in it can run, and every row knows its line or its number."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bishare_dsl.diagnostics import DataError, one_line
from bishare_dsl.diagnostics.codes import data as codes
from bishare_dsl.train.data.rows import Chunked, Findings, Row, Rows

_Table = tuple[Sequence[Row], Sequence[int], bool]
"""The rows, their numbers, and whether those are numbers of lines."""


def read_file(path: Path) -> Rows:
    """Read the rows of a file, which may be none.

    Raises:
        DataError: it is of no known kind (BS704), cannot be read (BS705, BS708), or rows of it cannot
            (BS706).
    """
    if (reader := READERS.get(path.suffix.lower())) is None:
        help = "known endings: " + ", ".join(READERS)
        raise DataError(codes.UNKNOWN_FILE(path=path, help=help))
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        table, numbers, by_line = reader(path)
    except OSError as error:
        raise DataError(codes.UNREADABLE(path=path, reason=error.strerror or str(error))) from error
    return Rows(str(path), f"sha256:{digest}", table, numbers, by_line, range(len(table)))


def _read_json(path: Path) -> _Table:
    data = path.read_bytes()
    first, _, rest = data.strip().partition(b"\n")
    if rest and _is_object(first):
        return _read_lines(path)  # JSON Lines are often called .json.
    try:
        value = json.loads(_text(path, data))
    except (ValueError, RecursionError) as error:
        raise DataError(codes.UNREADABLE(path=path, reason=one_line(error))) from error
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    if not isinstance(value, list):
        help = "an array of objects, or an object with one in `data`"
        raise DataError(codes.UNREADABLE(path=path, reason="it is not an array of rows", help=help))
    findings = Findings(str(path))
    for number, row in enumerate(value, 1):
        if not isinstance(row, dict):
            place = f"{path}, row {number}"
            findings.add(codes.BAD_LINE(place=place, reason="the row is not an object"))
    findings.raise_any()
    return value, range(1, len(value) + 1), False


def _read_lines(path: Path) -> _Table:
    findings = Findings(str(path))
    rows: list[Row] = []
    numbers: list[int] = []
    # Not `splitlines`: U+2028 and the like may stand unescaped inside a JSON string.
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode())
        except UnicodeDecodeError as error:
            reason = f"byte {error.start + 1} of the line is not UTF-8"
        except (ValueError, RecursionError) as error:
            reason = one_line(error)
        else:
            if isinstance(row, dict):
                rows.append(row)
                numbers.append(number)
                continue
            reason = "the line is not an object"
        findings.add(codes.BAD_LINE(place=f"{path}:{number}", reason=reason))
    findings.raise_any()
    return rows, numbers, True


def _read_csv(path: Path) -> _Table:
    findings = Findings(str(path))
    rows: list[Row] = []
    numbers: list[int] = []
    header: list[str] | None = None
    for number, cells in _cells(path, findings):
        if header is None:
            header = cells
            if len(set(header)) < len(header) or "" in header:
                reason = f"the columns have no different names each: {', '.join(header)}"
                findings.add(codes.BAD_LINE(place=f"{path}:{number}", reason=reason))
                break
        elif len(cells) != len(header):
            reason = f"there are {len(cells)} columns, and {len(header)} in the header"
            findings.add(codes.BAD_LINE(place=f"{path}:{number}", reason=reason))
        else:
            rows.append(dict(zip(header, cells, strict=True)))
            numbers.append(number)
    findings.raise_any()
    return rows, numbers, True


def _cells(path: Path, findings: Findings) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a CSV file, blank ones left out, each with its first line."""
    limit = csv.field_size_limit(2**31 - 1)  # Otherwise 128 KiB a field.
    reader = csv.reader(io.StringIO(_text(path, path.read_bytes()), newline=""), strict=True)
    number = 1
    try:
        for cells in reader:
            if cells:
                yield number, cells
            number = reader.line_num + 1
    except csv.Error as error:
        findings.add(codes.BAD_LINE(place=f"{path}:{number}", reason=one_line(error)))
    finally:
        csv.field_size_limit(limit)


def _read_parquet(path: Path) -> _Table:
    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError as error:
        help = "pip install 'bishare[train]'"
        problem = codes.NEEDS_PACKAGE(what="Parquet files", package="pyarrow", help=help)
        raise DataError(problem) from error
    try:
        table = parquet.read_table(path, memory_map=True)
    except pyarrow.ArrowException as error:
        raise DataError(codes.UNREADABLE(path=path, reason=one_line(error))) from error

    def read(start: int, stop: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = table.slice(start, stop - start).to_pylist()
        return found

    return Chunked(table.num_rows, read), range(1, table.num_rows + 1), False


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _text(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            codes.BAD_LINE(place=f"{path}:{line}", reason="the line is not UTF-8")
        ) from error


READERS = {
    ".json": _read_json,
    ".jsonl": _read_lines,
    ".ndjson": _read_lines,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
