"""Read a data set of the Hugging Face Hub, by `datasets`."""

from __future__ import annotations

from typing import Any

from bishare_dsl.diagnostics import DataError, one_line
from bishare_dsl.diagnostics.codes import data as codes
from bishare_dsl.train.data.rows import Chunked, Rows

_SECONDS = 5.0

_BUILDERS = {"arrow", "csv", "json", "parquet", "text"}
"""The kinds of data sets that are tables of text, and nothing else."""


def read_hub(name: str, split: str, subset: str | None) -> Rows:
    """Read the rows of a split, memory-mapped from the cache of `datasets`.

    Raises:
        DataError: the package is missing (BS708), the Hub has no such set for us (BS702), or the set no
            such part (BS703).
    """
    try:
        import datasets
    except ImportError as error:
        help = "pip install 'bishare[train]'"
        problem = codes.NEEDS_PACKAGE(what="a Hub data set", package="datasets", help=help)
        raise DataError(problem) from error
    _require(name)
    try:
        builder = datasets.load_dataset_builder(name, subset)
        if builder.name not in _BUILDERS | {"cache"}:
            reason = f"it is of the kind `{builder.name}`, which is not a table of text"
            raise DataError(codes.NO_SUCH_PART(name=name, reason=reason))
        builder.download_and_prepare()
        table = builder.as_dataset(split=split)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(codes.NO_SUCH_PART(name=name, reason=one_line(error))) from error
    except Exception as error:
        # `datasets`, the file systems below it and the formats have exceptions of their own each.
        raise DataError(codes.HUB_REFUSED(name=name, reason=one_line(error))) from error

    def read(start: int, stop: int) -> list[dict[str, Any]]:
        columns = table[start:stop]
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    return Rows(
        f"{name} ({split})",
        f"datasets:{table._fingerprint}",
        Chunked(len(table), read),
        range(1, len(table) + 1),
        False,
        range(len(table)),
    )


def _require(name: str) -> None:
    """Ask the Hub once, and shortly: left to itself `datasets` tries for 23 seconds without a network."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import RepositoryNotFoundError

    if is_offline_mode():
        return  # `datasets` then looks into its cache, and nowhere else.
    try:
        HfApi().dataset_info(name, timeout=_SECONDS)
    except RepositoryNotFoundError:
        reason = "there is no such data set, or it is private"
        help = "check the id, or the path; for a private data set run `hf auth login`"
        raise DataError(codes.HUB_REFUSED(name=name, reason=reason, help=help)) from None
    except Exception as error:
        # Every transport has exceptions of its own.
        help = "HF_HUB_OFFLINE=1 uses what was fetched before; a local file needs no connection"
        raise DataError(codes.HUB_REFUSED(name=name, reason=one_line(error), help=help)) from error
