"""``bishare check``: find every mistake of every file in one run."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.reading import read_spec
from bishare_dsl.cli.report import Report
from bishare_dsl.diagnostics import BishareError

if TYPE_CHECKING:
    from bishare_dsl.compiler import ResolvedSpec
    from bishare_dsl.models.site import Architecture

_SHAPES = "llama-7b"
"""The shapes on which to show what a spec shares if no model is given."""
_MOST_SHARES = 100
"""What more shares share is not shown on such shapes."""


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
    from bishare_dsl.models.load import architecture_of

    report.problems_are_results = True
    report.data(files=list(files))
    architecture = None
    try:
        architecture = None if model is None else architecture_of(model)
    except BishareError as error:
        report.error(error)  # Check the specs without a model.
    sharing: dict[str, Any] = {}
    for file in files:
        resolved = _check(file, architecture, report)
        if resolved is not None:
            sharing[file] = _tell(file if len(files) > 1 else None, resolved, model, report)
    report.data(sharing=sharing)
    counts: list[str] = []
    if report.errors:
        counts.append(_counted(report.errors, "error"))
    if report.warnings:
        counts.append(_counted(report.warnings, "warning"))
    report.note(f"{_counted(len(files), 'spec')} checked: {', '.join(counts) or 'all fine'}")
    if model is None:
        what = "whether what it names exists in your model, and widths and ranks fit"
        report.note(f"not checked without `--model`: {what}")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _tell(
    file: str | None, resolved: ResolvedSpec, model: str | None, report: Report
) -> dict[str, Any]:
    """Say what a spec shares, or return it as data for ``--json``."""
    from bishare_dsl.show.shared import shared_data, sharing_report

    if report.as_json:
        return {"model": resolved.plan.base.name, **shared_data(resolved.plan, resolved.spec)}
    head: list[str] = []
    if file:
        head.append(f"{file}:")
    if model is None:
        head.append(f"on the shapes of {_SHAPES}, for example:")
    tables = sharing_report(resolved.plan, resolved.spec)
    if head:
        report.tables(" ".join(head), *tables)
    else:
        report.tables(*tables)
    return {}


def _check(file: str, architecture: Architecture | None, report: Report) -> ResolvedSpec | None:
    """Report the problems of a spec, and return its plan; without a model, for example shapes."""
    where = None
    from bishare_dsl.compiler import make_plan

    try:
        spec, where = read_spec(file, architecture)
        if architecture is not None:
            resolved = make_plan(spec, architecture, where=where)
            report.all(resolved.problems, where)
            return resolved
        from bishare_dsl.advice import advise
        from bishare_dsl.language.read import warn_of_outdented
        from bishare_dsl.plan.check import check_spec

        problems = [*warn_of_outdented(spec, where), *check_spec(spec)]
        report.all(advise(problems, where, spec=spec, allow_use=report.allow_use), where)
        if report.errors:
            return None
        if len(spec.shares) > _MOST_SHARES:
            count = f"{len(spec.shares):,}"
            report.note(f"{file} has {count} shares: give `--model` to see what they share")
            return None
        with suppress(BishareError):
            return make_plan(spec, _SHAPES)
        report.note(f"{file} does not fit {_SHAPES}: give `--model` to see what is shared")
    except BishareError as error:
        report.error(error, where)
    return None
