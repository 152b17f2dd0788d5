"""``bishare specs``: list the shipped specs."""

from __future__ import annotations

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.report import CommandError, Report


@click.command(
    "specs", epilog=options.examples("bishare specs", "cat $(bishare specs --path bishare_ke)")
)
@click.option("--path", metavar="NAME", help="Print the path of this spec.")
@click.pass_obj
def command(report: Report, path: str | None) -> None:
    """List the specs that ship with bishare. A name works wherever a command takes a FILE."""
    from bishare_dsl.diagnostics import nearest
    from bishare_dsl.diagnostics.codes import usage as codes
    from bishare_dsl.resources import first_sentence, shipped_specs

    shipped = shipped_specs()
    if path is None:
        width = max(map(len, shipped), default=0)
        texts = {n: first_sentence(file.read_text(encoding="utf-8")) for n, file in shipped.items()}
        found = [{"name": n, "about": texts[n], "path": str(f)} for n, f in shipped.items()]
        report.data(specs=found)
        report.tables("\n".join(f"{name:{width}}  {text}" for name, text in texts.items()))
    elif path in shipped:
        report.data(path=str(shipped[path]))
        report.result(str(shipped[path]))
    else:
        why = "none of that name ships"
        raise CommandError(codes.NO_SUCH_SPEC(name=path, why=why, help=nearest(path, shipped)))
