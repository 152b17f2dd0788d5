"""Rows as read: plain values by column, and the location of each row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bishare_dsl.diagnostics import DataError, Problem
from bishare_dsl.diagnostics.codes import data as codes

Row = Mapping[str, Any]

_SHOWN = 5


@dataclass(frozen=True)
class Rows:
    """An ordered set of rows.

    Attributes:
        name: the file, or the Hub data set and split.
        table: all rows of the source.
        numbers: the numbers of all rows, for `place`.
        by_line: whether these are line numbers.
        picked: the indices of the rows in this set.
    """

    name: str
    table: Sequence[Row]
    numbers: Sequence[int]
    by_line: bool
    picked: Sequence[int]

    def __len__(self) -> int:
        return len(self.picked)

    def __getitem__(self, index: int) -> Row:
        return self.table[self.picked[index]]

    def place(self, index: int) -> str:
        """Return a row's location, from 1: ``train.jsonl:12`` (a line), or ``train.parquet, row 12``."""
        return place_of(self.name, self.numbers[self.picked[index]], by_line=self.by_line)

    def select(self, indices: Iterable[int]) -> Rows:
        """Return some of the rows in the given order, without copying."""
        return replace(self, picked=[self.picked[index] for index in indices])


def place_of(name: str, number: int, *, by_line: bool) -> str:
    """Format the location of a row."""
    return f"{name}:{number}" if by_line else f"{name}, row {number}"


class Findings:
    """Problems with rows: all are counted, and the first few are kept."""

    def __init__(self, name: str):
        self._name = name
        self._first: list[Problem] = []
        self.count = 0

    def add(self, problem: Problem) -> None:
        """Record a problem."""
        self.count += 1
        if self.count <= _SHOWN:
            self._first.append(problem)

    def raise_any(self) -> None:
        """Raise a `DataError` if there is a problem."""
        if more := self.count - len(self._first):
            self._first.append(codes.MORE_PROBLEMS(count=more, name=self._name))
        if self._first:
            raise DataError(self._first)
