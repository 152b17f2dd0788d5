"""``bishare plan``: what a spec shares and costs on a model."""

from __future__ import annotations

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.reading import plan_of
from bishare_dsl.cli.report import Report


@click.command(
    "plan",
    epilog=options.examples(
        "bishare plan my.share --model llama-7b",
        "bishare plan bishare_ke --model ./my-checkpoint --set r_inter=32 --set size=128",
        "bishare plan bishare_ke --model llama-7b --json | jq .trainable",
    ),
)
@click.argument("file", type=click.Path(allow_dash=True), metavar="FILE")
@options.model()
@options.values
@options.as_json
@options.quiet
@click.pass_obj
def command(report: Report, file: str, model: str, params: dict[str, int | float | str]) -> None:
    """Show what a spec shares and costs on a model: pools, ranks, parameters, bytes.

    FILE is a .share file, the name of a spec that ships with bishare, or - for standard input. The model's
    weights are not read.
    """
    from bishare_dsl.cli import summary

    plan, _, _ = plan_of(file, model, params, report)
    if report.as_json:
        report.data(**summary.as_data(plan))
    else:
        report.result(summary.as_text(plan))
