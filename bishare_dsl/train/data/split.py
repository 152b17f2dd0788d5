"""Set some rows aside, to measure on what was not trained on."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict

from bishare_dsl.diagnostics import DataError
from bishare_dsl.diagnostics.codes import data as codes
from bishare_dsl.train.data.formats import Format, content_fields, find_format
from bishare_dsl.train.data.rows import Rows


def split_off(
    rows: Rows, size: int | float, seed: int, *, format: Format | None = None
) -> tuple[Rows, Rows]:
    """Split rows into those to train on and those held out; each side keeps their order.

    Rows with the same content come together; a group of them that is larger than what is still wanted
    is left to train on, so that never more than ``size`` are held out. The choice depends on the
    content and the seed alone, not on the order of the rows.

    Args:
        rows: of one format; columns that the format does not know do not count as content.
        size: how many rows to hold out (int, at least 1), or which part of them (float between 0 and 1).
        seed: another seed, other rows.
        format: as in `encode`.

    Returns:
        The rows to train on, and those held out.

    Raises:
        DataError: the format is unknown or ambiguous (BS709, BS710), or one side would be empty (BS724).
    """
    fields = content_fields(format or find_format(rows))
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index in range(len(rows)):
        row = rows[index]
        content = json.dumps([row.get(field) for field in fields], sort_keys=True, default=str)
        groups[hashlib.sha256(f"{seed} {content}".encode()).digest()].append(index)
    wanted = round(size * len(rows)) if isinstance(size, float) else size
    held_out: set[int] = set()
    for _, group in sorted(groups.items()):
        if len(held_out) + len(group) <= wanted:
            held_out.update(group)
    if not held_out or len(held_out) == len(rows):
        reason = "no row would be left on one side"
        if len(groups) < len(rows):
            reason += f" ({len(groups):,} of them are different)"
        problem = codes.TOO_FEW_TO_SPLIT(rows=len(rows), name=rows.name, wanted=size, reason=reason)
        raise DataError(problem)
    return (
        rows.select(i for i in range(len(rows)) if i not in held_out),
        rows.select(sorted(held_out)),
    )
