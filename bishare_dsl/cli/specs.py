"""``bishare specs``: list the shipped specs, and the models whose shapes ship."""

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
    """List the specs that ship with bishare, and the models whose shapes do.

    The name of a spec works wherever a command takes a FILE. The name of a model works for `--model` where
    shapes are enough, and needs no files.
    """
    from bishare_dsl.diagnostics import nearest
    from bishare_dsl.diagnostics.codes import usage as codes
    from bishare_dsl.resources import shipped_specs

    shipped = shipped_specs()
    if path is None:
        _list(report)
    elif path in shipped:
        report.data(path=str(shipped[path]))
        report.result(str(shipped[path]))
    else:
        why = "none of that name ships"
        raise CommandError(codes.NO_SUCH_SPEC(name=path, why=why, help=nearest(path, shipped)))


def _list(report: Report) -> None:
    from bishare_dsl.models import PRESETS, preset
    from bishare_dsl.resources import first_sentence, shipped_specs
    from bishare_dsl.show.table import Table

    specs = []
    for name, file in shipped_specs().items():
        about = first_sentence(file.read_text(encoding="utf-8"))
        specs.append({"name": name, "about": about, "path": str(file)})
    models = [preset(name) for name in PRESETS]
    report.data(specs=specs, models=[model.model_dump(exclude={"sites"}) for model in models])
    width = max((len(spec["name"]) for spec in specs), default=0)
    lines = [f"{spec['name']:{width}}  {spec['about']}" for spec in specs]
    rows = []
    for model in models:
        size = f"{model.parameters / 1e9:,.2f}B"
        rows.append([model.name, size, str(model.layers), model.model_id or ""])
    head = ["model", "parameters", "layers", "on the Hub"]
    report.tables("\n".join(lines), Table(head, rows, frozenset({0, 3})))
