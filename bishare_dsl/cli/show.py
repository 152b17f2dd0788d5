"""``bishare show``: draw which modules share which tensors."""

from __future__ import annotations

from pathlib import Path

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.adapters import plan_of_any
from bishare_dsl.cli.report import Report
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes.adapter import FOLDER_EXISTS


@click.command(
    "show",
    epilog=options.examples(
        "bishare show bishare_ke --model llama-7b --out sharing.svg",
        "bishare show bishare_ss --model ./my-checkpoint --set r_inter=0 --out sharing.svg",
        "bishare show out/library#acme --out sharing.svg",
    ),
)
@options.spec()
@options.model(required=False)
@options.values
@options.out("The picture to write, such as sharing.svg.", "FILE")
@click.pass_obj
def command(
    report: Report, file: str, model: str | None, params: dict[str, options.Value], out: Path
) -> None:
    """Draw which modules share: layers across, modules down, one colour for each tensor.

    FILE is a spec, or the folder of an adapter (FOLDER#NAME in a library). An existing SVG is
    replaced, and no other file.
    """
    if out.suffix != ".svg":
        raise click.UsageError(f"`{out}` is not SVG: write `--out {out.with_suffix('.svg')}`")
    if out.is_file() and b"<svg" not in out.read_bytes()[:1000]:
        raise AdapterError(FOLDER_EXISTS(folder=out, help="give another `--out`: it is no picture"))
    from bishare_dsl.show.svg import draw
    from bishare_dsl.writing import replace_file

    resolved = plan_of_any(file, model, params, report)
    replace_file(out, draw(resolved.plan, resolved.spec).encode())
    report.data(svg=str(out))
    report.result(str(out))
