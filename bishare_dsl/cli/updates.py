"""From folders on the command line to the updates that are measured, on data too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from bishare_dsl.cli import candidates
from bishare_dsl.cli.report import Report

if TYPE_CHECKING:
    from bishare_dsl.adapter.handle import Handle
    from bishare_dsl.analyse.analysis import Analysis
    from bishare_dsl.analyse.read import AdapterUpdates


def read_adapters(
    folders: Sequence[Path], model: str, report: Report, *, keep_starts: bool
) -> list[AdapterUpdates]:
    """Read adapters of a model as updates; warnings go to the report, and what was done of their starts.

    Raises:
        BishareError: an adapter cannot be read, does not fit (BS613), has updates that are not
            matrices (BS633), or adds nothing (BS850).
    """
    from bishare_dsl.analyse.read import read_updates

    stored = candidates.read_adapters(folders, model, report)
    found = []
    for name in [*stored]:
        # What was read goes as soon as its updates are known.
        adapter = stored.pop(name)
        report.note(f"reading {name} ...")
        found.append(read_updates(name, adapter, keep_starts=keep_starts))
        if not (found[-1].starts_known or keep_starts):
            report.note(f"{name}: what A started as is not known, and stays in it")
    return found


def add_worth(
    found: Sequence[Analysis],
    model: str,
    data: str,
    rows: int,
    dtype: str | None,
    device: str | None,
    report: Report,
) -> list[Analysis]:
    """Add to analyses what each share is worth on data.

    Raises:
        BishareError: the model has no weights or no tokenizer, or the data cannot be read.
    """
    from bishare_dsl.analyse.batches import batches_of
    from bishare_dsl.analyse.worth import worth
    from bishare_dsl.compiler import read_fitting

    done = []
    live, tokenizer = candidates.load_base(model, dtype, device, report)
    batches = batches_of(data, tokenizer, rows)
    for analysis in found:
        stored = read_fitting(analysis.adapter.folder, live)[0]
        with candidates.adapted(live, stored, report):
            handle = cast("Handle", live.bishare)
            done.append(replace(analysis, worth=worth(handle, batches)))
    return done
