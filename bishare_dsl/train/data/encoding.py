"""Encode rows as examples: token ids, loss mask and a report."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from bishare_dsl.diagnostics import DataError, Problem
from bishare_dsl.diagnostics.codes import data as codes
from bishare_dsl.train.data.batches import ALLOWED, IGNORED
from bishare_dsl.train.data.formats import OPTIONS, BadRow, Format, Plain, find_format, read_row
from bishare_dsl.train.data.load import Rows, raise_first
from bishare_dsl.train.data.tokens import Encoder, Tokens


@dataclass(frozen=True)
class DataReport:
    """Counts for an encoded data set.

    Attributes:
        name: the name of the data set.
        format: the format of the rows; in words, if data sets of several are joined.
        rows: the number of rows read.
        kept: the number of examples. Other rows have no trained token: no assistant turn, an empty
            completion, or nothing trained within ``max_length``.
        cut: the number of examples truncated at ``max_length``.
        tokens: the number of tokens in the examples.
        trained_tokens: the number of tokens with a loss.
        max_length: the limit in tokens.
        digest: of the examples' tokens and labels.
    """

    name: str
    format: str
    rows: int
    kept: int
    cut: int
    tokens: int
    trained_tokens: int
    max_length: int
    digest: str = field(repr=False)

    @classmethod
    def joined(cls, name: str, reports: Sequence[DataReport]) -> DataReport:
        """Return the report on the examples of several data sets as one."""
        digest = hashlib.sha256("".join(report.digest for report in reports).encode())
        formats = {report.format for report in reports}
        return cls(
            name=name,
            format=" and ".join(sorted(formats)),
            rows=sum(report.rows for report in reports),
            kept=sum(report.kept for report in reports),
            cut=sum(report.cut for report in reports),
            tokens=sum(report.tokens for report in reports),
            trained_tokens=sum(report.trained_tokens for report in reports),
            max_length=reports[0].max_length,
            digest=digest.hexdigest(),
        )

    def __str__(self) -> str:
        """Describe the counts in one paragraph."""
        text = f"{self.name}: {self.rows:,} rows ({self.format}), {self.kept:,} kept with "
        text += f"{self.tokens:,} tokens, of which {self.trained_tokens:,} are trained on."
        if dropped := self.rows - self.kept:
            text += f" {dropped:,} dropped with nothing to learn."
        if self.cut:
            text += f" {self.cut:,} cut at {self.max_length:,} tokens."
        return text


class Encoded(NamedTuple):
    """Encoded examples and their report."""

    examples: Dataset
    report: DataReport


def encode(
    rows: Rows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    train_on: Literal["completion", "all"] = "completion",
    format: Format | None = None,
) -> Encoded:
    """Check and encode every row.

    Args:
        rows: rows of one format.
        tokenizer: a tokenizer, with a chat template if the rows are chats.
        max_length: the maximum length in tokens; longer examples are truncated.
        train_on: ``"completion"`` trains on the completion, or on all assistant turns with their end
            tokens; ``"all"`` trains on every token. Plain text is always trained on in full.
        format: the format, if the columns fit several.

    Raises:
        DataError: the format is unknown or ambiguous (BS709, BS710), rows are invalid (BS711 to BS714,
            BS719, BS720; the first are listed), the tokenizer lacks a template or token (BS718, BS721), or
            no row has a trained token (BS723).
    """
    format = format or find_format(rows)
    chats = tokenizer.chat_template is not None
    encoder = Encoder(rows.name, tokenizer, whole=train_on == "all")
    problems = list[Problem]()
    examples = _Columns()
    for value, place in zip(rows.table, rows.places, strict=True):
        try:
            row = read_row(value, place, format, chats=chats)
            tokens = encoder(row, place)
            choices = list[list[int]]()
            if isinstance(row, Plain) and row.options and tokens is not None:
                tokens, choices = encoder.among_options(row, tokens, place)
        except BadRow as bad:
            problems.append(bad.problems[0])
            continue
        if tokens is not None:
            examples.add(tokens, choices, place, max_length)
    raise_first(rows.name, problems)
    if not examples.labels:
        raise DataError(codes.NOTHING_TO_LEARN(rows=len(rows), name=rows.name))
    report = DataReport(
        name=rows.name,
        format=format,
        rows=len(rows),
        kept=len(examples.labels),
        cut=examples.cut,
        tokens=sum(len(labels) for labels in examples.labels),
        trained_tokens=sum(int((labels != IGNORED).sum()) for labels in examples.labels),
        max_length=max_length,
        digest=examples.digest.hexdigest(),
    )
    return Encoded(examples.dataset(), report)


class _Columns:
    """The columns of encoded examples, the place of each, and a digest of them."""

    def __init__(self) -> None:
        self.ids = list[Any]()
        self.labels = list[Any]()
        self.choices = list[list[list[int]]]()
        self.places = list[str]()
        self.cut = 0
        self.digest = hashlib.sha256()

    def add(self, tokens: Tokens, choices: list[list[int]], place: str, max_length: int) -> None:
        """Add an example of at most ``max_length`` tokens, unless none of them is trained on."""
        trained = tokens[1][:max_length]
        if not any(trained):
            return
        ids = np.array(tokens[0][:max_length], np.int32)
        labels = np.where(trained, ids, IGNORED).astype(np.int32)
        self.cut += len(tokens[0]) > max_length
        self.digest.update(f"{len(ids)} {choices}".encode() + ids.tobytes() + labels.tobytes())
        self.ids.append(ids)
        self.labels.append(labels)
        self.choices.append(choices)
        self.places.append(place)

    def dataset(self) -> Dataset:
        """Return the examples; either all have options, or none.

        Raises:
            DataError: an example has no options, and others have (BS711).
        """
        columns: dict[str, list[Any]] = {"input_ids": self.ids, "labels": self.labels}
        if any(self.choices):
            for choices, place in zip(self.choices, self.places, strict=True):
                if not choices:
                    raise DataError(codes.MISSING_FIELD(place=place, field=OPTIONS))
            columns[ALLOWED] = self.choices
        return Dataset.from_dict(columns)
