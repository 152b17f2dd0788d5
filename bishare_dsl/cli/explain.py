"""``bishare explain``: print the page of an error code."""

from __future__ import annotations

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.report import CommandError, Report


@click.command(
    "explain", epilog=options.examples("bishare explain BS201", "bishare explain BS201 --json")
)
@click.argument("code", metavar="CODE")
@click.pass_obj
def command(report: Report, code: str) -> None:
    """Explain an error code: its meaning, a spec with the error, and a corrected spec."""
    from bishare_dsl.diagnostics import nearest
    from bishare_dsl.diagnostics.codes import registry
    from bishare_dsl.diagnostics.codes import usage as codes
    from bishare_dsl.resources import error_index, error_page

    all_codes = registry()
    name = code.upper()
    if name not in all_codes:
        raise CommandError(codes.UNKNOWN_CODE(code=code, help=nearest(name, all_codes)))
    code_of = all_codes[name]
    title = error_index()[name][0]
    if (file := error_page(name)).is_file():
        page = file.read_text(encoding="utf-8").rstrip()
    else:
        page = f"{name}, {title}: {code_of.message}. {code_of.remedy or ''}".rstrip()
    report.data(code=name, title=title, page=page)
    report.tables(page)
