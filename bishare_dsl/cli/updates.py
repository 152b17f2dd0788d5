"""From folders on the command line to the updates that are measured, on data too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bishare_dsl.cli.reading import read_adapter_for
from bishare_dsl.cli.report import Report

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bishare_dsl.analyse.analysis import Analysis
    from bishare_dsl.analyse.progress import Watch
    from bishare_dsl.analyse.read import AdapterUpdates


def progress_bar(report: Report) -> Watch:
    """Return what shows how far long work is."""
    return partial(report.track, told=True)


def read_adapters(
    folders: Sequence[Path], model: str, report: Report, *, keep_starts: bool
) -> list[AdapterUpdates]:
    """Read adapters of a model as updates; warnings go to the report, and what was done of their starts.

    Raises:
        BishareError: an adapter cannot be read, does not fit (BS613), has updates that are not
            matrices (BS633), or adds nothing (BS850).
    """
    from bishare_dsl.analyse.read import read_updates
    from bishare_dsl.evaluate.candidates import candidates
    from bishare_dsl.models import architecture_of

    architecture = architecture_of(model)
    stored = {
        folder: read_adapter_for(folder, architecture, report) for folder in dict.fromkeys(folders)
    }
    watch = progress_bar(report)
    found = []
    for candidate in candidates(stored, base=False):
        assert candidate.folder is not None
        # What was read goes as soon as its updates are known.
        adapter = stored.pop(candidate.folder)
        found.append(read_updates(candidate.label, adapter, keep_starts=keep_starts, watch=watch))
        if not (found[-1].starts_known or keep_starts):
            report.note(f"{candidate.label}: what A started as is not known, and stays in it")
    return found


def add_data_measures(
    found: Sequence[Analysis],
    model: str,
    data: str,
    rows: int,
    dtype: str | None,
    device: str | None,
    seed: int,
    report: Report,
) -> list[Analysis]:
    """Add to analyses what is seen on data.

    Raises:
        BishareError: the model has no weights or no tokenizer, or the data cannot be read.
    """
    from bishare_dsl.analyse.analysis import add_data
    from bishare_dsl.analyse.batches import batches_of
    from bishare_dsl.evaluate.candidates import Candidate, activate_candidate

    done = []
    with load_for_analysis(model, dtype, device, report) as (live, tokenizer):
        batches = batches_of(data, tokenizer, rows)
        for analysis in found:
            candidate = Candidate(analysis.adapter.name, analysis.adapter.folder)
            with activate_candidate(live, candidate):
                done.append(
                    add_data(analysis, live, batches, seed=seed, watch=progress_bar(report))
                )
    return done


@contextmanager
def load_for_analysis(
    model: str, dtype: str | None, device: str | None, report: Report
) -> Iterator[tuple[PreTrainedModel, PreTrainedTokenizerBase]]:
    """Load a model and its tokenizer for a block.

    Raises:
        BishareError: as `bishare_dsl.evaluate.candidates.load_base` does.
    """
    from transformers.utils import logging

    from bishare_dsl.evaluate.candidates import load_base
    from bishare_dsl.models.load import require_weights

    logging.disable_progress_bar()
    report.note(f"loading {model} ...")
    yield load_base(require_weights(model), dtype=dtype, device=device, chat=False)
