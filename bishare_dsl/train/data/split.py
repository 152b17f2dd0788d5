"""Set some rows aside, to measure on what was not trained on."""

from __future__ import annotations

from bishare_dsl.train.data.formats import Format
from bishare_dsl.train.data.rows import Rows


def split_off(
    rows: Rows, size: int | float, seed: int, *, format: Format | None = None
) -> tuple[Rows, Rows]:
    """Split rows into those to train on and those held out; each side keeps their order.

    Rows with the same content come together. The choice depends on the content and the seed alone.

    Args:
        rows: of one format; columns that the format does not know do not count as content.
        size: how many rows to hold out (int, at least 1), or which part of them (float between 0 and 1).
        seed: another seed, other rows.
        format: as in `encode`.

    Raises:
        DataError: the format is unknown or ambiguous, or one side would be empty.
    """
    raise NotImplementedError
