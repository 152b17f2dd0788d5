"""Rows as they were read: plain values by column, and where each of them is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bishare_dsl.diagnostics import DataError, Problem
from bishare_dsl.diagnostics.codes import data as codes

Row = Mapping[str, Any]

_SHOWN = 5
_CHUNK = 1000


@dataclass(frozen=True)
class Rows:
    """A set of rows, in order.

    Attributes:
        name: the file, or the Hub data set with its split.
        digest: ``sha256:…`` of the file's bytes, or ``datasets:…``, the fingerprint that `datasets` gives.
            A part of a set (`select`, `split_off`) has the digest of the whole.
        table: all rows of the source.
        numbers: of those rows, for `place`.
        by_line: whether they are numbers of lines.
        picked: which of those rows are in this set.
    """

    name: str
    digest: str
    table: Sequence[Row]
    numbers: Sequence[int]
    by_line: bool
    picked: Sequence[int]

    def __len__(self) -> int:
        return len(self.picked)

    def __getitem__(self, index: int) -> Row:
        return self.table[self.picked[index]]

    def place(self, index: int) -> str:
        """Return where a row is, for a person: ``train.jsonl:12`` (a line), or ``train.parquet, row 12``.

        Both are counted from 1.
        """
        number = self.numbers[self.picked[index]]
        return f"{self.name}:{number}" if self.by_line else f"{self.name}, row {number}"

    def select(self, indices: Iterable[int]) -> Rows:
        """Return some of the rows, in the order given; no row is copied."""
        return replace(self, picked=[self.picked[index] for index in indices])


class Chunked(Sequence[Row]):
    """Rows of a table that is quick to read in order and slow row by row.

    Args:
        length: how many rows there are.
        read: gives the rows from a first one up to another.
    """

    def __init__(self, length: int, read: Callable[[int, int], list[dict[str, Any]]]):
        self._length, self._read = length, read
        self._chunk: tuple[int, list[dict[str, Any]]] = (-1, [])

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        number, offset = divmod(index, _CHUNK)
        if number != self._chunk[0]:
            start = number * _CHUNK
            self._chunk = number, self._read(start, min(start + _CHUNK, self._length))
        return self._chunk[1][offset]


class Findings:
    """Problems of rows: the first few are kept, all are counted."""

    def __init__(self, name: str):
        self._name = name
        self._first: list[Problem] = []
        self._count = 0

    def __bool__(self) -> bool:
        return self._count > 0

    def add(self, problem: Problem) -> None:
        """Note a problem."""
        self._count += 1
        if self._count <= _SHOWN:
            self._first.append(problem)

    def raise_any(self) -> None:
        """Raise a `DataError` if there was a problem."""
        if more := self._count - len(self._first):
            raise DataError([*self._first, codes.MORE_PROBLEMS(count=more, name=self._name)])
        if self._first:
            raise DataError(self._first)
