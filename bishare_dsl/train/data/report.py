"""What became of the rows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from bishare_dsl.train.data.formats import Format


@dataclass(frozen=True)
class DataReport:
    """Counts of an encoded set; ``kept + nothing_to_learn == rows``.

    Attributes:
        name: of the set.
        digest: of the whole set that the rows are of, as `Rows.digest`.
        format: of the rows.
        rows: that were read.
        kept: examples that are trained on.
        nothing_to_learn: rows dropped, since no token of them is learnt: no assistant turn, an empty
            completion, or all that was to be learnt lies beyond ``max_length``.
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
            f"{self.tokens:,} tokens, of which {self.trained_tokens:,} are learnt."
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
