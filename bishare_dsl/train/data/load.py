"""Find a set of rows by its name: a file, or a data set on the Hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from bishare_dsl.diagnostics import DataError
from bishare_dsl.diagnostics.codes import data as codes
from bishare_dsl.train.data.files import READERS, read_file
from bishare_dsl.train.data.hub import read_hub
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
            read, some of its rows cannot (the first ones are named), or it is empty (BS701 to BS708).
    """
    path = Path(source)
    # `datasets` would take `csv` for all CSV files in the current folder, so an id has an owner.
    is_id = isinstance(source, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None
    if path.is_file():
        rows = read_file(path)
    elif is_id and path.suffix not in READERS and not path.exists():
        rows = read_hub(str(source), split, subset)
    else:
        help = "give one of the files in it" if path.is_dir() else None
        raise DataError(codes.NO_SUCH_DATA(source=source, help=help))
    if not rows:
        raise DataError(codes.NO_ROWS(name=rows.name))
    return rows
