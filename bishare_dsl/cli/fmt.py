"""``bishare fmt``: give specs the standard layout."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.reading import cannot_read, read_text
from bishare_dsl.cli.report import FINDINGS, CommandError, Report
from bishare_dsl.diagnostics import BishareError
from bishare_dsl.diagnostics.codes import usage as codes
from bishare_dsl.language.format import format_text
from bishare_dsl.writing import replace_file


@click.command(
    "fmt",
    epilog=options.examples(
        "bishare fmt my.share other.share",
        "bishare fmt --check specs/*.share",
        "bishare fmt - < my.share",
    ),
)
@options.specs
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if a file would change.")
@click.pass_obj
def command(report: Report, files: tuple[str, ...], check: bool) -> None:
    """Give specs the standard layout, in place. Comments and meaning stay.

    If a file is not a valid spec, its errors are shown and it is left unchanged.
    """
    results: list[dict[str, Any]] = []
    for file in files:
        try:
            results.append(_format(file, report, check=check))
        except BishareError as error:
            report.error(error)
        except OSError as error:
            report.problem(cannot_read(file, error))
    changed = sum(result["changed"] for result in results)
    report.data(files=results)
    if check and changed:
        report.exit_code = max(report.exit_code, FINDINGS)


def _format(file: str, report: Report, *, check: bool) -> dict[str, Any]:
    """Format one file, and return the result for the report."""
    if file != "-" and not Path(file).exists():
        # Do not fall back to a shipped spec: format only files whose path was given.
        raise CommandError(codes.NO_SUCH_SPEC(name=file, why="no such file"))
    old, name = read_text(file)
    text = format_text(old, name)
    new = text.encode()
    outcome = {"file": name, "changed": new != old}
    if check:
        if new != old:
            report.result(f"would change {name}")
    elif file == "-" and report.as_json:
        outcome["text"] = text
    elif file == "-":
        sys.stdout.buffer.write(new)
        sys.stdout.buffer.flush()
    elif new != old:
        replace_file(Path(file).resolve(), new)
        report.note(f"changed {name}")
    return outcome
