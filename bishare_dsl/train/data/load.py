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
from bishare_dsl.diagnostics.tried import json_meant, near_path
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
        sign = next((sign for sign in "*," if sign in str(source)), "")
        near = near_path(str(source), lambda beside: beside.endswith(ENDINGS))
        raise DataError(codes.NO_SUCH_DATA(source=source, help=advise("data", sign) or near))
    if not rows:
        raise DataError(codes.NO_ROWS(name=rows.name))
    return rows


def _read_file(path: Path) -> Rows:
    kind = path.suffix.lower()
    if kind not in ENDINGS:
        raise DataError(codes.UNKNOWN_FILE(path=path, help=advise("ending", kind)))
    try:
        content = b"" if kind == ".parquet" else path.read_bytes()
        begins = (advise("begins", content[:most].hex()) for most in (2, 4, 9))
        if help := next(filter(None, begins), None):
            raise DataError(codes.UNREADABLE(path=path, reason="it has no rows as text", help=help))
        by_line, read = _rows_in(path, kind, content.decode("utf-8-sig"))
    except (OSError, ValueError) as error:
        help = "save the file as UTF-8" if isinstance(error, UnicodeDecodeError) else None
        raise DataError(codes.UNREADABLE(path=path, reason=one_line(error), help=help)) from error
    problems: list[Problem] = []
    places: list[str] = []
    for number, row in read:
        places.append(f"{path}:{number}" if by_line else f"{path}, row {number}")
        if not isinstance(row, dict):
            plain = "it is not an object", advise("row", type(row).__name__)
            reason, help = row.args if isinstance(row, _Unread) else plain
            problems.append(codes.BAD_LINE(place=places[-1], reason=reason, help=help))
    raise_first(str(path), problems)
    return Rows(str(path), [row for _, row in read], places)


class _Unread(Exception):
    """A row that cannot be read: the reason, and what to do."""


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
        if text.lstrip()[:1] == "[" and error.msg != "Extra data":
            reason, help = _why(text, text, error).args
            raise DataError(codes.UNREADABLE(path=path, reason=reason, help=help)) from error
    else:
        rows = value.get("data", value.get("rows")) if isinstance(value, dict) else value
        if isinstance(rows, list):
            return False, [*enumerate(rows, 1)]
        if kind == ".json":
            reason = "it is not a list of rows"
            help = advise("row", "dict")
            raise DataError(codes.UNREADABLE(path=path, reason=reason, help=help))
    return True, [*_read_json(text)]


def _read_json(text: str) -> Iterator[tuple[int, Any]]:
    """Yield the values that stand one after another, each with its line, or that of what is wrong."""
    decoder = json.JSONDecoder()
    line = 1
    end = 0
    # A line separator in a text, such as U+2028, ends no line.
    while letter := _LETTER.search(text, end):
        line = line + text.count("\n", end, letter.start())
        start = letter.start()
        try:
            row, end = decoder.raw_decode(text, start)
            pairs = json.loads(text[start:end], object_pairs_hook=list)
            if isinstance(row, dict) and len(pairs) > len(row):
                row = _Unread("a column stands twice", "take one of the two out")
            yield line, row
        except (ValueError, RecursionError) as error:
            end_of_row = start + len(text[start : getattr(error, "pos", start)].rstrip())
            following = _ROW.search(text, end_of_row)
            end = following.start() if following else len(text)
            yield line + text.count("\n", start, end_of_row), _why(text, text[start:end], error)
        line += text.count("\n", start, end)


_LETTER = re.compile(r"\S")
_ROW = re.compile(r"\n(?=\s*[{\[])")


def _why(text: str, row: str, error: Exception) -> _Unread:
    """Say what JSON does not read in a text, and what to write: only what was tried, and is read."""
    if not isinstance(error, json.JSONDecodeError):
        return _Unread(one_line(error), None)
    if error.pos >= len(text.rstrip()) or "Unterminated" in error.msg:
        return _Unread("the file ends within this row", "write the row whole, or leave it out")
    excerpt = " ".join(text[error.pos : error.pos + 20].split())
    return _Unread(f"{error.msg.removesuffix(' at')} before `{excerpt}`", json_meant(row))


def _read_csv(text: str) -> Iterator[tuple[int, Any]]:
    """Yield the nonblank rows, each with its last line number."""
    # The header says what separates columns.
    comma = max(",;\t|", key=text.partition("\n")[0].count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=comma, strict=True)
    try:
        for row in reader:
            more = [*row.pop(None, ())]
            cells = sum(cell is not None for cell in row.values()) + len(more)
            help = f"quote a cell with {comma!r} in it" if more else "give each column a cell"
            wrong = _Unread(f"line 1 names {len(row)} columns, and this row has {cells}", help)
            yield reader.line_num, row if cells == len(row) else wrong
    except csv.Error as error:
        help = 'in a cell in quotes, a quote is written twice: `""`'
        yield reader.line_num + 1, _Unread(one_line(error), help)


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
