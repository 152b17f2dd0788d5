"""``bishare fmt``: one layout for every spec."""

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
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(allow_dash=True), metavar="FILE..."
)
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if a file would change.")
@click.pass_obj
def command(report: Report, files: tuple[str, ...], check: bool) -> None:
    """Give specs their one layout; comments and meaning stay. Files are rewritten in place, or not at all.

    A file that cannot be read as a spec is left alone, and its errors are shown.
    """
    found: list[dict[str, Any]] = []
    for file in files:
        try:
            found.append(_format(file, report, check=check))
        except BishareError as error:
            report.error(error)
        except OSError as error:
            report.problem(cannot_read(file, error))
    changed = sum(one["changed"] for one in found)
    report.data(files=found)
    if check and changed:
        report.exit_code = max(report.exit_code, FINDINGS)
    if len(files) > 1:
        does = "would change" if check else "changed"
        report.note(f"{changed} of {len(files)} specs {does}")


def _format(file: str, report: Report, *, check: bool) -> dict[str, Any]:
    """Format one file; what to tell of it."""
    if file != "-" and not Path(file).exists():
        # A shipped spec is not meant: rewriting a file that nobody gave the path of would surprise.
        raise CommandError(codes.NO_SUCH_SPEC(name=file, why="no such file"))
    old, name = read_text(file)
    text = format_text(old, name)
    new = text.encode()
    told = {"file": name, "changed": new != old}
    if check:
        if new != old:
            report.result(f"would change {name}")
    elif file == "-" and report.as_json:
        told["text"] = text
    elif file == "-":
        sys.stdout.buffer.write(new)
        sys.stdout.buffer.flush()
    elif new != old:
        replace_file(Path(file).resolve(), new)
        report.note(f"changed {name}")
    return told
