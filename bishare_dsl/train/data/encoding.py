"""Encode rows as examples: token ids, loss mask and a report."""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from bishare_dsl.diagnostics import DataError
from bishare_dsl.diagnostics.codes import data as codes
from bishare_dsl.train.data.batches import ALLOWED, IGNORED, dataset_of
from bishare_dsl.train.data.formats import (
    OPTIONS,
    BadRow,
    Chat,
    Format,
    Plain,
    find_format,
    read_row,
)
from bishare_dsl.train.data.rows import Findings, Rows
from bishare_dsl.train.data.tokens import Encoder, Tokens

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


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
        text = (
            f"{self.name}: {self.rows:,} rows ({self.format}), {self.kept:,} kept with "
            f"{self.tokens:,} tokens, of which {self.trained_tokens:,} are trained on."
        )
        if dropped := self.rows - self.kept:
            text += f" {dropped:,} dropped with nothing to learn."
        if self.cut:
            text += f" {self.cut:,} cut at {self.max_length:,} tokens."
        return text


@dataclass(frozen=True)
class Encoded:
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
    findings, cut = Findings(rows.name), 0
    ids, labels, lengths = array("i"), array("i"), array("i")
    allowed: list[list[list[int]]] = []
    for index in range(len(rows)):
        place = rows.place(index)
        try:
            row = read_row(rows[index], place, format, chats=chats)
            encoded, choices = _among_options(encoder, row, encoder(row, place), place, train_on)
        except BadRow as bad:
            findings.add(bad.problems[0])
            continue
        if encoded is not None and any(encoded[1][:max_length]):
            tokens = encoded[0][:max_length]
            allowed.append(choices)
            cut += len(encoded[0]) > max_length
            ids.extend(tokens)
            labels.extend(i if yes else IGNORED for i, yes in zip(*encoded, strict=True))
            del labels[len(ids) :]
            lengths.append(len(tokens))
    findings.raise_any()
    if not lengths:
        raise DataError(codes.NOTHING_TO_LEARN(rows=len(rows), name=rows.name))
    if any(allowed) and not all(allowed):
        place = rows.place([bool(choices) for choices in allowed].index(False))
        raise DataError(codes.MISSING_FIELD(place=place, field=OPTIONS))
    learned = np.array(labels, np.int32)
    digest = hashlib.sha256(f"{lengths}{allowed}".encode())
    digest.update(ids)
    digest.update(labels)
    report = DataReport(
        name=rows.name,
        format=format,
        rows=len(rows),
        kept=len(lengths),
        cut=cut,
        tokens=len(ids),
        trained_tokens=int((learned != IGNORED).sum()),
        max_length=max_length,
        digest=digest.hexdigest(),
    )
    examples = dataset_of(np.array(ids, np.int32), learned, lengths)
    if any(allowed):
        examples = examples.add_column(ALLOWED, allowed)
    return Encoded(examples, report)


def _among_options(
    encoder: Encoder, row: Plain | Chat, tokens: Tokens | None, place: str, train_on: str
) -> tuple[Tokens | None, list[list[int]]]:
    """Return the tokens of a row and, if it has options, the allowed ids for each trained token.

    A token without an alternative is not trained on.

    Raises:
        BadRow: the options are indistinguishable (BS726).
    """
    if not isinstance(row, Plain) or not row.options or tokens is None:
        return tokens, []
    try:
        if train_on == "all":
            raise ValueError("only the completion is one of them: `train_on` must be `completion`")
        choices = encoder.choices(row, *tokens)
    except ValueError as error:
        raise BadRow(codes.BAD_OPTIONS(place=place, field=OPTIONS, reason=error)) from error
    ids, trained = tokens
    start = trained.index(True)
    learned = [*trained[:start], *(len(choice) > 1 for choice in choices)]
    return (ids, learned), [choice for choice in choices if len(choice) > 1]
