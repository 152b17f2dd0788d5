"""Read rows from a file, without executing its contents, or from a data set on the Hub."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bishare_dsl.diagnostics import DataError, Problem, advise, one_line, raise_errors
from bishare_dsl.diagnostics.codes import data as codes
from bishare_dsl.reading import parse_json

Row = Mapping[str, Any]

_SHOWN = 5


@dataclass(frozen=True)
class Rows:
    """An ordered set of rows.

    Attributes:
        name: the file, or the Hub data set and split.
        table: the rows.
        places: the location of each, from 1: ``train.jsonl:12`` (a line), or ``train.parquet, row 12``.
    """

    name: str
    table: Sequence[Row]
    places: Sequence[str]

    def __len__(self) -> int:
        return len(self.table)

    @classmethod
    def join(cls, parts: Sequence[Rows]) -> Rows:
        """Return the rows of all parts."""
        if len(parts) == 1:
            return parts[0]
        table = [row for part in parts for row in part.table]
        return cls(f"{len(parts)} files", table, [p for part in parts for p in part.places])

    def select(self, indices: Iterable[int]) -> Rows:
        """Return some of the rows in the given order."""
        some = [*indices]
        return Rows(self.name, [self.table[i] for i in some], [self.places[i] for i in some])


def raise_first(name: str, problems: Sequence[Problem]) -> None:
    """Raise the first problems with rows as a `DataError`, and the number of others, if there are any."""
    first = [*problems[:_SHOWN]]
    if more := len(problems) - len(first):
        first.append(codes.MORE_PROBLEMS(count=more, name=name))
    raise_errors(DataError, first)


ENDINGS = (".json", ".jsonl", ".ndjson", ".csv", ".parquet")
"""The suffixes of data files."""


def load_rows(
    source: str | os.PathLike[str], *, split: str = "train", subset: str | None = None
) -> Rows:
    """Read rows from a file, or from a data set on the Hub.

    Args:
        source: a file (.json, .jsonl, .ndjson, .csv, .parquet), or the id of a data set on the Hub. JSON is
            an array of objects, or an object with such an array in ``data`` or ``rows``.
        split: the split of a Hub data set, such as ``"train[:1000]"``; ignored for files.
        subset: the configuration of a Hub data set with several.

    Raises:
        DataError: there is no such file (BS701) or reachable data set (BS703), it is
            unreadable (BS704, BS705), rows are unreadable (BS706; the first are listed), or it is empty
            (BS707).
    """
    path = Path(source)
    # `datasets` reads `csv` as all CSV files in the current folder, so an id needs an owner.
    is_id = isinstance(source, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None
    if path.is_file():
        rows = _read_file(path)
    elif is_id and path.suffix not in ENDINGS and not path.exists():
        rows = _read_hub(str(source), split, subset)
    else:
        raise DataError(codes.NO_SUCH_DATA(source=source))
    if not rows:
        raise DataError(codes.NO_ROWS(name=rows.name))
    return rows


def _read_file(path: Path) -> Rows:
    kind = path.suffix.lower()
    if kind not in ENDINGS:
        raise DataError(codes.UNKNOWN_FILE(path=path))
    try:
        content = b"" if kind == ".parquet" else path.read_bytes()
        by_line, read = _rows_in(path, kind, content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(codes.BAD_LINE(place=f"{path}:{line}", reason="it is not UTF-8")) from error
    except (OSError, ValueError) as error:
        raise DataError(codes.UNREADABLE(path=path, reason=one_line(error))) from error
    problems, places = list[Problem](), list[str]()
    for number, row in read:
        places.append(f"{path}:{number}" if by_line else f"{path}, row {number}")
        if not isinstance(row, dict):
            reason = one_line(row) if isinstance(row, Exception) else "it is not an object"
            problems.append(codes.BAD_LINE(place=places[-1], reason=reason))
    raise_first(str(path), problems)
    return Rows(str(path), [row for _, row in read], places)


def _rows_in(path: Path, kind: str, text: str) -> tuple[bool, list[tuple[int, Any]]]:
    """Return whether rows have line numbers, and the rows with their numbers; an exception is a bad row."""
    if kind == ".parquet":
        from pyarrow import parquet  # type: ignore[import-untyped]

        return False, [*enumerate(parquet.read_table(path).to_pylist(), 1)]
    if kind == ".csv":
        return True, [*_read_csv(text)]
    try:
        value = parse_json(text, limited=False)
    except json.JSONDecodeError as error:
        # JSON Lines are often named .json, and an array .jsonl.
        if kind == ".json" and error.msg != "Extra data":
            raise _in_words(error) from error
    else:
        rows = value.get("data", value.get("rows")) if isinstance(value, dict) else value
        if isinstance(rows, list):
            return False, [*enumerate(rows, 1)]
        if kind == ".json":
            raise ValueError("it is not an array of rows, nor an object with one in `data`")
    # Not `splitlines`: a JSON string may contain U+2028 and similar characters unescaped.
    return True, [(n, _parsed(line)) for n, line in enumerate(text.split("\n"), 1) if line.strip()]


def _parsed(line: str) -> Any:
    try:
        row = parse_json(line)
        if isinstance(row, dict) and len(json.loads(line, object_pairs_hook=list)) > len(row):
            raise ValueError("a column stands twice, and one of its two values would be lost")
        return row
    except ValueError as error:
        return _in_words(error, line.strip())


def _in_words(error: ValueError, line: str = "") -> ValueError:
    """Say also what to write in place of what JSON does not allow, if it is known."""
    meant = advise("json", line) or advise("json", [*str(error).split(), ""][1])
    return ValueError(f"{error}: {meant}") if meant else error


def _read_csv(text: str) -> Iterator[tuple[int, Any]]:
    """Yield the nonblank rows, each with its last line number."""
    # The header says what separates columns.
    comma = max(",;\t|", key=text.partition("\n")[0].count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=comma, strict=True)
    try:
        for row in reader:
            fits = None not in row and None not in row.values()
            wrong = ValueError(f"its cells are not as many as columns: quote one with {comma!r}")
            yield reader.line_num, row if fits else wrong
    except csv.Error as error:
        yield reader.line_num + 1, error


def _read_hub(name: str, split: str, subset: str | None) -> Rows:
    """Read the rows of a split with `datasets`, memory-mapped from its cache."""
    import datasets

    try:
        table = datasets.load_dataset(name, subset, split=split)
    except Exception as error:
        # `datasets`, its file systems and its formats raise exceptions of many types.
        raise DataError(codes.NO_SUCH_PART(name=name, reason=one_line(error))) from error
    name = f"{name} ({split})"
    return Rows(name, table, [f"{name}, row {number + 1}" for number in range(len(table))])
