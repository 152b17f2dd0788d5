"""Compare runs in ``bishare inspect``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bishare_dsl.cli.report import Report
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes.adapter import FOLDER_EXISTS

if TYPE_CHECKING:
    from bishare_dsl.train.finished import FinishedRun


def check_files(files: Sequence[Path]) -> None:
    """Check that files can be written, before anything is read.

    Raises:
        click.UsageError: an ending has no form.
        BishareError: a plot needs matplotlib (BS735), or a file is not one of such a comparison (BS618).
    """
    from bishare_dsl.train.export import BEGINNINGS, ENDINGS, PLOTS, check_plot

    for file in files:
        if file.suffix not in ENDINGS:
            raise click.UsageError(f"`{file}` has none of the endings {', '.join(ENDINGS)}")
        if file.suffix in PLOTS:
            check_plot()
        if file.is_file():
            with file.open("rb") as stream:
                begins = stream.read(1000)
            if BEGINNINGS[file.suffix] not in begins:
                help = "give another `--out`: this file is not the comparison of runs"
                raise AdapterError(FOLDER_EXISTS(folder=file, help=help))


def show_runs(
    runs: Sequence[FinishedRun], files: Sequence[Path], baseline: str | None, report: Report
) -> None:
    """Show the comparison of runs, and write it into files, which are replaced.

    Raises:
        BishareError: the runs cannot be compared (BS911), or a file cannot be written (BS616).
    """
    from bishare_dsl.folder.files import writing
    from bishare_dsl.train.comparison import compare
    from bishare_dsl.train.export import content_of, table_of
    from bishare_dsl.writing import replace_file

    comparison = compare(runs, baseline)
    for file in files:
        with writing(file):
            replace_file(file, content_of(comparison, file.suffix))
    report.data(
        runs=[run.as_dict() for run in comparison.runs],
        specs=[asdict(row) for row in comparison.rows],
        notes=comparison.notes,
        files=[str(file) for file in files],
    )
    report.tables(table_of(comparison), "\n".join(comparison.notes))
    report.note(*[f"wrote {file}" for file in files])
