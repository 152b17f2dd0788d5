"""``bishare runs``: training runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.report import CommandError, Report
from bishare_dsl.diagnostics import one_line
from bishare_dsl.diagnostics.codes import usage as codes

if TYPE_CHECKING:
    from bishare_dsl.train.record import Run

_COLUMNS = {
    "trainable": "{:,}",
    "steps": "{:,}",
    "first": "{:.4f}",
    "best": "{:.4f}",
    "last": "{:.4f}",
    "held_out": "{:.4f}",
    "seconds": "{:,.0f}",
    "tokens_per_second": "{:,.0f}",
}
# Where a run is, and not how it was made.
_PLACES = frozenset({"output_dir", "resume_from_checkpoint", "force"})


@click.command(
    "runs",
    epilog=options.examples(
        "bishare runs out/*",
        "bishare runs out --sort held_out",
        "bishare runs out --json | jq '.runs[] | {folder, best}'",
    ),
)
@click.argument(
    "folders", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="DIR..."
)
@click.option(
    "--sort",
    type=click.Choice(["started", "folder", *_COLUMNS]),
    default="started",
    help="By this column, the lowest first; by default when the runs were started.",
)
@options.as_json
@options.quiet
@click.pass_obj
def command(report: Report, folders: tuple[Path, ...], sort: str) -> None:
    """Compare training runs: what they were asked, and what came of it.

    DIR is the folder of a run, or one that holds such folders. Of the settings those are shown in which the
    runs differ. The losses are the first, the lowest and the last that were logged, and the lowest on
    held-out rows; a run that goes on is shown as far as it has come.
    """
    from bishare_dsl.train.record import RUN, find_runs, read_run

    runs = []
    for folder in folders:
        found = find_runs(folder)
        if not found:
            reason = f"no {RUN} is in it, nor in a folder in it"
            raise CommandError(codes.CANNOT_READ(path=folder, reason=reason))
        for path in found:
            try:
                runs.append(read_run(path))
            except ValueError as error:
                report.problem(codes.CANNOT_READ(path=path / RUN, reason=one_line(error)))
    runs = list({run.folder: run for run in runs}.values())
    runs.sort(key=lambda run: (getattr(run, sort) is None, getattr(run, sort)))
    report.data(runs=[run.model_dump(mode="json") for run in runs])
    if runs:
        report.result(_table(runs))


def _table(runs: list[Run]) -> str:
    from bishare_dsl.show.table import table

    varied = _varied(runs)
    head = ["run", "status", "spec", *varied, *(name.replace("_", " ") for name in _COLUMNS)]
    rows = [
        [
            run.folder,
            run.status,
            run.spec,
            *(_said(run.settings.get(name)) for name in varied),
            *(_figure(getattr(run, name), form) for name, form in _COLUMNS.items()),
        ]
        for run in runs
    ]
    return table(head, rows, left=range(3))


def _varied(runs: list[Run]) -> list[str]:
    """List the settings that are not the same in all runs."""
    names = dict.fromkeys(name for run in runs for name in run.settings if name not in _PLACES)
    return [name for name in names if len({_said(run.settings.get(name)) for run in runs}) > 1]


def _said(value: Any) -> str:
    return "-" if value is None else str(value)


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
