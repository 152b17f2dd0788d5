"""From rows to examples: what the model reads, and which tokens of it are learnt."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from bishare_dsl.diagnostics import DataError
from bishare_dsl.diagnostics.codes import data as codes
from bishare_dsl.train.data.examples import Examples
from bishare_dsl.train.data.formats import BadRow, Chat, Format, Plain, RowReader, find_format
from bishare_dsl.train.data.report import DataReport
from bishare_dsl.train.data.rows import Findings, Rows
from bishare_dsl.train.data.tokens import Encoder
from bishare_dsl.train.data.turns import ChatRenderer, Rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TrainOn = Literal["completion", "all"]

_CHUNK = 1000


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
        train_on: ``"completion"`` learns the completion, or all turns of the assistant, each with
            what ends it; ``"all"`` learns every token. Plain text is learnt whole either way.
        format: which of the formats, where the columns fit several.
        progress: called with the number of rows done and of all rows, now and then and at the end.

    Raises:
        DataError: the format is unknown or ambiguous (BS709, BS710), rows are bad (the first ones are
            named: BS711 to BS716, BS719, BS720), the tokenizer lacks what is needed (BS718, BS721,
            BS722), or no row has anything to learn (BS723).
    """
    format = format or find_format(rows)
    read = RowReader(format, chat=format == "alpaca" and tokenizer.chat_template is not None)
    render = _Renderer(rows.name, tokenizer, whole=train_on == "all")
    encoder, kept, findings = Encoder(tokenizer, max_length), _Kept(max_length), Findings(rows.name)
    for first in range(0, len(rows), _CHUNK):
        last = min(first + _CHUNK, len(rows))
        rendered = []
        for index in range(first, last):
            place = rows.place(index)
            try:
                rendered.append(render(read(rows[index], place), place))
            except BadRow as bad:
                findings.add(bad.problem)
        if not findings:  # Otherwise nothing will come of it; but the other rows are checked.
            for example in encoder(r for r in rendered if r is not None):
                kept.add(*example)
        if progress is not None:
            progress(last, len(rows))
    findings.raise_any()
    examples = kept.examples()
    if not examples:
        reason = (
            "what is to be learnt lies behind `max_length`"
            if kept.longest > max_length
            else "there is no completion, and no turn of the assistant"
        )
        raise DataError(codes.NOTHING_TO_LEARN(rows=len(rows), name=rows.name, reason=reason))
    return Encoded(
        examples,
        DataReport(
            name=rows.name,
            digest=rows.digest,
            format=format,
            rows=len(rows),
            kept=len(examples),
            nothing_to_learn=len(rows) - len(examples),
            cut=kept.cut,
            tokens=len(kept.ids),
            trained_tokens=kept.trained.count(1),
            longest=kept.longest,
            max_length=max_length,
        ),
    )


class _Renderer:
    """Texts as they are, and chats by the tokenizer's template."""

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerBase, *, whole: bool):
        self._name, self._tokenizer, self._whole = name, tokenizer, whole

    def __call__(self, row: Plain | Chat, place: str) -> Rendered | None:
        if isinstance(row, Chat):
            return self._chats(row, place)
        text = row.prompt + row.completion
        start = 0 if self._whole else len(row.prompt)
        if not text[start:].strip():
            return None
        return Rendered(text, [(start, len(text))], ended=False, by_template=False)

    @cached_property
    def _chats(self) -> ChatRenderer:
        if self._tokenizer.chat_template is None:
            raise DataError(codes.NO_CHAT_TEMPLATE(name=self._name))
        return ChatRenderer(self._tokenizer, whole=self._whole)


class _Kept:
    """Collects examples that have something to learn, cut to a length."""

    def __init__(self, max_length: int):
        self._max_length = max_length
        self.ids, self.trained, self._lengths = array("i"), bytearray(), array("i")
        self.cut = self.longest = 0

    def add(self, ids: Sequence[int], trained: Sequence[bool]) -> None:
        self.longest = max(self.longest, len(ids))
        limit = self._max_length
        if not any(trained[:limit]):
            return
        self.cut += len(ids) > limit
        self.ids.extend(ids[:limit])
        self.trained.extend(trained[:limit])
        self._lengths.append(min(len(ids), limit))

    def examples(self) -> Examples:
        ids = np.array(self.ids, dtype=np.int32)
        return Examples(ids, np.array(self.trained, dtype=np.bool_), self._lengths)
