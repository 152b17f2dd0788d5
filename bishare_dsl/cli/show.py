"""``bishare show``: draw which modules share which tensors."""

from __future__ import annotations

from pathlib import Path

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.adapters import plan_of_any
from bishare_dsl.cli.report import Report


@click.command(
    "show",
    epilog=options.examples(
        "bishare show bishare_ke --model llama-7b --html sharing.html",
        "bishare show bishare_ss --model ./my-checkpoint --set r_inter=0 --out sharing.svg",
        "bishare show out/library#acme --out sharing.html",
    ),
)
@options.spec()
@options.model(required=False)
@options.values
@click.option(
    *("-o", "--out", "--html", "--svg"),
    "files",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a page with every module and share (.html), or a picture (.svg); may be repeated.",
)
@click.pass_obj
def command(
    report: Report,
    file: str,
    model: str | None,
    params: dict[str, options.Value],
    files: tuple[Path, ...],
) -> None:
    """Draw which modules share: layers across, modules down, one colour for each tensor.

    FILE is a spec, or the folder of an adapter (FOLDER#NAME in a library). Existing files are replaced.
    """
    for path in files:
        if path.suffix not in (".svg", ".html"):
            raise click.UsageError(f"`{path}` is neither .html nor .svg, such as `sharing.svg`")
    from bishare_dsl.show.page import page
    from bishare_dsl.show.picture import picture
    from bishare_dsl.show.svg import whole
    from bishare_dsl.writing import replace_file

    resolved = plan_of_any(file, model, params, report)
    for path in files:
        drawn = picture(resolved.plan, resolved.spec)
        text = whole(drawn) if path.suffix == ".svg" else page(resolved.plan, resolved.spec)
        replace_file(path, text.encode())
        report.data(**{path.suffix[1:]: str(path)})
        report.result(str(path))
