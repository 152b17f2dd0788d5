"""Encode rows as examples: token ids, loss mask and a report."""

from __future__ import annotations

import hashlib
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
from bishare_dsl.train.data.tokens import Encoder


@dataclass(frozen=True)
class DataReport:
    """Counts for an encoded data set.

    Attributes:
        name: the name of the data set.
        format: the format of the rows.
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
    format: Format
    rows: int
    kept: int
    cut: int
    tokens: int
    trained_tokens: int
    max_length: int
    digest: str = field(repr=False)

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
    format, chats = format or find_format(rows), tokenizer.chat_template is not None
    encoder = Encoder(rows.name, tokenizer, whole=train_on == "all")
    problems, cut, digest = list[Problem](), 0, hashlib.sha256()
    columns: dict[str, list[Any]] = {"input_ids": [], "labels": [], ALLOWED: []}
    for found, place in zip(rows.table, rows.places, strict=True):
        try:
            row = read_row(found, place, format, chats=chats)
            encoded, choices = encoder(row, place), list[list[int]]()
            if isinstance(row, Plain) and row.options and encoded is not None:
                encoded, choices = encoder.among_options(row, encoded, place)
        except BadRow as bad:
            problems.append(bad.problems[0])
            continue
        if encoded is not None and any(encoded[1][:max_length]):
            ids = np.array(encoded[0][:max_length], np.int32)
            labels = np.where(encoded[1][:max_length], ids, IGNORED).astype(np.int32)
            cut += len(encoded[0]) > max_length
            digest.update(f"{len(ids)} {choices}".encode() + ids.tobytes() + labels.tobytes())
            for column, value in zip(columns.values(), (ids, labels, choices), strict=True):
                column.append(value)
    raise_first(rows.name, problems)
    if not columns["labels"]:
        raise DataError(codes.NOTHING_TO_LEARN(rows=len(rows), name=rows.name))
    if not any(columns[ALLOWED]):
        del columns[ALLOWED]
    elif not all(columns[ALLOWED]):
        place = rows.places[[bool(choices) for choices in columns[ALLOWED]].index(False)]
        raise DataError(codes.MISSING_FIELD(place=place, field=OPTIONS))
    counts = {"rows": len(rows), "kept": len(columns["labels"]), "cut": cut}
    counts |= {"tokens": sum(map(len, columns["labels"])), "max_length": max_length}
    counts["trained_tokens"] = sum(int((row != IGNORED).sum()) for row in columns["labels"])
    report = DataReport(rows.name, format, **counts, digest=digest.hexdigest())
    return Encoded(Dataset.from_dict(columns), report)
