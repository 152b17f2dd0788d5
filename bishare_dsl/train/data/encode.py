"""From rows to examples: what the model reads, and which tokens of it are learnt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bishare_dsl.train.data.examples import Examples
from bishare_dsl.train.data.formats import Format
from bishare_dsl.train.data.report import DataReport
from bishare_dsl.train.data.rows import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TrainOn = Literal["completion", "all"]


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
        DataError: the format is unknown or ambiguous, rows are bad (the first ones are named), the
            tokenizer lacks a chat template or an end-of-sequence token that is needed, its chat
            template does not show where the assistant's turns are, or no row has anything to learn.
    """
    raise NotImplementedError
