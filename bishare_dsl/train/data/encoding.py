"""From rows to examples: what the model reads, which tokens it is trained on, what became of the rows."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bishare_dsl.diagnostics import DataError
from bishare_dsl.diagnostics.codes import data as codes
from bishare_dsl.train.data.examples import IGNORED, Examples
from bishare_dsl.train.data.formats import BadRow, Format, find_format, read_row
from bishare_dsl.train.data.rows import Findings, Rows
from bishare_dsl.train.data.tokens import Encoder
from bishare_dsl.train.data.turns import Renderer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TrainOn = Literal["completion", "all"]

_CHUNK = 1000


@dataclass(frozen=True)
class DataReport:
    """Counts of an encoded set; ``kept + nothing_to_learn == rows``.

    Attributes:
        name: of the set.
        digest: of the whole set that the rows are of, as `Rows.digest`.
        format: of the rows.
        rows: that were read.
        kept: examples that are trained on.
        nothing_to_learn: rows dropped, since no token of them is trained on: no assistant turn, an empty
            completion, or all that was to be trained on lies beyond ``max_length``.
        cut: rows kept of which the end was cut off at ``max_length``.
        tokens: in the kept examples.
        trained_tokens: those of them that count in the loss.
        longest: the length of the longest row before cutting, in tokens; of one far too long, a part.
        max_length: the limit.
    """

    name: str
    digest: str
    format: Format
    rows: int
    kept: int
    nothing_to_learn: int
    cut: int
    tokens: int
    trained_tokens: int
    longest: int
    max_length: int

    def __str__(self) -> str:
        """Write one paragraph."""
        said = (
            f"{self.name}: {self.rows:,} rows ({self.format}), {self.kept:,} kept with "
            f"{self.tokens:,} tokens, of which {self.trained_tokens:,} are trained on."
        )
        if self.nothing_to_learn:
            said += f" {self.nothing_to_learn:,} dropped with nothing to learn."
        if self.cut:
            said += f" {self.cut:,} cut at {self.max_length:,} tokens;"
            said += f" the longest has at least {self.longest:,}."
        return said

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Encoded:
    """What is trained on, and what became of the rows."""

    examples: Examples
    report: DataReport


def encode(
    rows: Rows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    train_on: TrainOn = "completion",
    format: Format | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Encoded:
    """Check and encode every row.

    Args:
        rows: of one format.
        tokenizer: with a chat template, if the rows are chats.
        max_length: the longest example, in tokens; what is longer loses its end.
        train_on: ``"completion"`` trains on the completion, or on all turns of the assistant, each with
            what ends it; ``"all"`` on every token. Plain text is trained on whole either way.
        format: which of the formats, where the columns fit several.
        progress: called with the number of rows done and of all rows, now and then and at the end.

    Raises:
        DataError: the format is unknown or ambiguous (BS709, BS710), rows are bad (the first ones are
            named: BS711 to BS716, BS719, BS720), the tokenizer lacks what is needed (BS718, BS721,
            BS722), or no row has anything to learn (BS723).
    """
    format = format or find_format(rows)
    render = Renderer(rows.name, tokenizer, whole=train_on == "all")
    encoder, findings = Encoder(tokenizer, max_length), Findings(rows.name)
    ids, labels, lengths, cut, longest = array("i"), array("i"), array("i"), 0, 0
    for first in range(0, len(rows), _CHUNK):
        last = min(first + _CHUNK, len(rows))
        rendered = []
        for index in range(first, last):
            place = rows.place(index)
            try:
                row = read_row(
                    rows[index], place, format, chats=tokenizer.chat_template is not None
                )
                rendered.append(render(row, place))
            except BadRow as bad:
                findings.add(bad.problems[0])
        # After a bad row nothing will come of it; but the other rows are checked.
        for tokens, trained in (
            () if findings.count else encoder(r for r in rendered if r is not None)
        ):
            longest = max(longest, len(tokens))
            if any(trained[:max_length]):
                cut += len(tokens) > max_length
                kept = tokens[:max_length]
                ids.extend(kept)
                labels.extend(i if yes else IGNORED for i, yes in zip(kept, trained, strict=False))
                lengths.append(len(kept))
        if progress is not None:
            progress(last, len(rows))
    findings.raise_any()
    if not lengths:
        reason = (
            "what is to be trained on lies behind `max_length`"
            if longest > max_length
            else "there is no completion, and no turn of the assistant"
        )
        raise DataError(codes.NOTHING_TO_LEARN(rows=len(rows), name=rows.name, reason=reason))
    columns = {"input_ids": np.array(ids, np.int32), "labels": np.array(labels, np.int32)}
    report = DataReport(
        name=rows.name,
        digest=rows.digest,
        format=format,
        rows=len(rows),
        kept=len(lengths),
        nothing_to_learn=len(rows) - len(lengths),
        cut=cut,
        tokens=len(ids),
        trained_tokens=int((columns["labels"] != IGNORED).sum()),
        longest=longest,
        max_length=max_length,
    )
    return Encoded(Examples(columns, lengths), report)
