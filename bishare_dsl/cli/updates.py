"""From folders on the command line to the updates that are measured, on data too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bishare_dsl.cli.reading import adapter_for
from bishare_dsl.cli.report import Report

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bishare_dsl.analyse.analysis import Analysis
    from bishare_dsl.analyse.progress import Watch
    from bishare_dsl.analyse.read import Measured


def watching(report: Report) -> Watch:
    """Give what shows how far long work is."""
    return partial(report.track, told=True)


def adapters_of(
    folders: Sequence[Path], model: str, report: Report, *, keep_starts: bool
) -> list[Measured]:
    """Read adapters of a model as updates; warnings go to the report, and what was done of their starts.

    Raises:
        BishareError: one cannot be read, does not fit (BS613), is no matrix (BS633) or adds nothing (BS850).
    """
    from bishare_dsl.analyse.read import measured
    from bishare_dsl.evaluate.live import candidates
    from bishare_dsl.models import architecture_of

    architecture = architecture_of(model)
    stored = {
        folder: adapter_for(folder, architecture, report) for folder in dict.fromkeys(folders)
    }
    watch = watching(report)
    found = []
    for candidate in candidates(stored, base=False):
        assert candidate.folder is not None
        # What was read goes as soon as its updates are known.
        adapter = stored.pop(candidate.folder)
        found.append(measured(candidate.label, adapter, keep_starts=keep_starts, watch=watch))
        if not (found[-1].starts_known or keep_starts):
            report.note(f"{candidate.label}: what A started as is not known, and stays in it")
    return found


def on_data(
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
    from bishare_dsl.analyse.analysis import with_data
    from bishare_dsl.analyse.batches import batches_of
    from bishare_dsl.evaluate.live import Candidate, made_into

    done = []
    with model_to_look_at(model, dtype, device, report) as (live, tokenizer):
        batches = batches_of(data, tokenizer, rows)
        for analysis in found:
            candidate = Candidate(analysis.adapter.name, analysis.adapter.folder)
            with made_into(live, candidate):
                done.append(with_data(analysis, live, batches, seed=seed, watch=watching(report)))
    return done


@contextmanager
def model_to_look_at(
    model: str, dtype: str | None, device: str | None, report: Report
) -> Iterator[tuple[PreTrainedModel, PreTrainedTokenizerBase]]:
    """Load a model and its tokenizer for a block.

    Raises:
        BishareError: as `bishare_dsl.evaluate.live.loaded` does.
    """
    from transformers.utils import logging

    from bishare_dsl.evaluate.live import loaded
    from bishare_dsl.models.load import require_weights

    logging.disable_progress_bar()
    report.note(f"loading {model} ...")
    yield loaded(require_weights(model), dtype=dtype, device=device, chat=False)
