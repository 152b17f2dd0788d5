"""``bishare check``: find every mistake of every file in one run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.reading import read_spec
from bishare_dsl.cli.report import Report
from bishare_dsl.diagnostics import BishareError

if TYPE_CHECKING:
    from bishare_dsl.models.site import Architecture


@click.command(
    "check",
    epilog=options.examples(
        "bishare check my.share other.share",
        "bishare check my.share --model llama-7b",
        "bishare check bishare_ke --json",
        "cat my.share | bishare check -",
    ),
)
@options.specs
@options.model(required=False)
@click.pass_obj
def command(report: Report, files: tuple[str, ...], model: str | None) -> None:
    """Find every mistake in specs: in their text, in their meaning and, with a model, in how they fit it.

    Exits with 1 if there is an error; warnings alone are fine.
    """
    report.problems_are_results = True
    report.data(files=list(files))
    architecture = _architecture(model, report) if model is not None else None
    for file in files:
        _check(file, architecture, report)
    counts = [
        f"{count} {word}{'s' if count != 1 else ''}"
        for count, word in ((report.errors, "error"), (report.warnings, "warning"))
        if count
    ]
    checked = f"{len(files)} spec{'s' if len(files) != 1 else ''} checked"
    report.note(f"{checked}: {', '.join(counts) or 'all fine'}")
    if model is None:
        what = "whether what it names exists in a model, and widths and ranks fit"
        report.note(f"not checked without `--model`: {what}")


def _architecture(model: str, report: Report) -> Architecture | None:
    from bishare_dsl.models.load import architecture_of

    try:
        return architecture_of(model)
    except BishareError as error:
        report.error(error)  # Check the specs without a model.
        return None


def _check(file: str, architecture: Architecture | None, report: Report) -> None:
    where = None
    try:
        spec, where = read_spec(file)
        if architecture is None:
            from bishare_dsl.language.read import warn_of_outdented
            from bishare_dsl.plan.check import check_spec

            problems = check_spec(spec)
            if any(problem.severity == "error" for problem in problems):
                from bishare_dsl.compiler import drop_failing_advice

                problems = [*drop_failing_advice(problems, where, None)]
            report.all([*warn_of_outdented(spec, where), *problems], where)
        else:
            from bishare_dsl.compiler import make_plan

            report.all(make_plan(spec, architecture, where=where).problems, where)
    except BishareError as error:
        report.error(error, where)
