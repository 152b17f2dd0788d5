"""Find a set of rows by its name: a file, or a data set on the Hub."""

from __future__ import annotations

import os

from bishare_dsl.train.data.rows import Rows


def load_rows(
    source: str | os.PathLike[str], *, split: str = "train", subset: str | None = None
) -> Rows:
    """Read rows from a file, or from a data set on the Hub.

    Args:
        source: a file whose ending says what it is (.json, .jsonl, .ndjson, .csv, .parquet), or
            else the id of a data set on the Hub. JSON is an array of objects, or an object with
            one in ``data``.
        split: the split of a Hub data set, ``"train[:1000]"`` and the like included. A file has no
            splits, and this is ignored.
        subset: the configuration of a Hub data set that has several.

    Raises:
        DataError: there is no such file and no such data set that can be reached, it cannot be
            read, some of its rows cannot (the first ones are named), or it is empty.
    """
    raise NotImplementedError
