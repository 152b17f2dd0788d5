"""Encoded examples, five bytes a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NotRequired, TypedDict, overload


class Example(TypedDict):
    """One sequence. ``labels`` are the ids of the tokens that are learnt and -100 elsewhere, unshifted."""

    input_ids: list[int]
    labels: list[int]
    position_ids: NotRequired[list[int]]
    """Only in packed sequences: starts again at 0 with every example."""


class Examples(Sequence[Example]):
    """Examples as a sequence that torch's DataLoader and transformers' Trainer take as a data set."""

    def __len__(self) -> int:
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        raise NotImplementedError
