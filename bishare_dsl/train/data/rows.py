"""Rows as they were read: plain values by column, and where each of them is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Rows:
    """A set of rows, in order.

    Attributes:
        name: the file, or the Hub data set with its split.
        digest: ``sha256:…`` of the file's bytes, or ``datasets:…``, the fingerprint that `datasets` gives.
            A part of a set (`select`, `split_off`) has the digest of the whole.
    """

    name: str
    digest: str
    table: Sequence[Any]
    numbers: Sequence[int]
    by_line: bool
    picked: Sequence[int]

    def __len__(self) -> int:
        return len(self.picked)

    def __getitem__(self, index: int) -> Any:
        """A row: a dict of its columns in every set that `encode` accepts."""
        return self.table[self.picked[index]]

    def place(self, index: int) -> str:
        """Where a row is, for a person: ``train.jsonl:12`` (a line), or ``train.parquet, row 12``.

        Both are counted from 1.
        """
        number = self.numbers[self.picked[index]]
        return f"{self.name}:{number}" if self.by_line else f"{self.name}, row {number}"

    def select(self, indices: Iterable[int]) -> Rows:
        """Some of the rows, in the order given; no row is copied."""
        return replace(self, picked=[self.picked[index] for index in indices])
