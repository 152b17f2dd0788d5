"""``bishare diff``: compare two adapters."""

from __future__ import annotations

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.diff_adapters import compare_adapters, no_adapter
from bishare_dsl.cli.reading import is_adapter
from bishare_dsl.cli.report import CommandError, Report


@click.command(
    "diff",
    epilog=options.examples(
        "bishare diff lib#acme lib#globex",
        "bishare diff my-lora your-lora --model ./my-checkpoint --json",
    ),
)
@click.argument("before", metavar="BEFORE")
@click.argument("after", metavar="AFTER")
@options.model(required=False)
@click.pass_obj
def command(report: Report, before: str, after: str, model: str | None) -> None:
    """Show how far apart the updates of two adapters are.

    BEFORE and AFTER are folders, adapters of a library (FOLDER#NAME), or plain LoRAs of PEFT. Updates are
    compared by kind of module, with their relative difference |dW_1 - dW_2| / |dW_1| and their cosine.
    """
    if others := [name for name in (before, after) if not is_adapter(name)]:
        raise CommandError(no_adapter(before, after, others[0]))
    compare_adapters(before, after, model, report)
