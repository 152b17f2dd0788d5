"""``bishare show``: draw which modules share which tensors."""

from __future__ import annotations

from pathlib import Path

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.reading import plan_of
from bishare_dsl.cli.report import Report

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(
    "show",
    epilog=options.examples(
        "bishare show bishare_ke --model llama-7b --html sharing.html",
        "bishare show bishare_ss --model ./my-checkpoint --set r_inter=0 --svg sharing.svg",
    ),
)
@options.spec()
@options.model()
@options.values
@click.option(
    "--html",
    type=_FILE,
    metavar="FILE",
    help="Write a page with every module and share; it needs no network.",
)
@click.option("--svg", type=_FILE, metavar="FILE", help="Write a picture of all shares.")
@click.pass_obj
def command(
    report: Report,
    file: str,
    model: str,
    params: dict[str, options.Value],
    html: Path | None,
    svg: Path | None,
) -> None:
    """Draw which modules share: layers across, modules down, one colour for each tensor.

    Give --html, --svg or both. Existing files are replaced.
    """
    if html is None and svg is None:
        raise click.UsageError("give a file to write: --html FILE or --svg FILE")
    from bishare_dsl.writing import replace_file

    resolved = plan_of(file, model, params, report)
    if html is not None:
        from bishare_dsl.show.page import page

        replace_file(html, page(resolved.plan, resolved.spec).encode())
        report.data(html=str(html))
        report.result(str(html))
    if svg is not None:
        from bishare_dsl.show.picture import picture
        from bishare_dsl.show.svg import whole

        replace_file(svg, whole(picture(resolved.plan, resolved.spec)).encode())
        report.data(svg=str(svg))
        report.result(str(svg))
