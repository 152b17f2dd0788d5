"""``bishare models``: list the presets."""

from __future__ import annotations

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.report import Report


@click.command(
    "models", epilog=options.examples("bishare models", "bishare plan lora --model qwen3-8b")
)
@click.pass_obj
def command(report: Report) -> None:
    """List the presets: models whose shapes are built in, so that `--model NAME` needs no files."""
    from bishare_dsl.models import PRESETS, preset
    from bishare_dsl.show.table import Table

    models = [preset(name) for name in PRESETS]
    report.data(models=[model.model_dump(exclude={"sites"}) for model in models])
    rows = [
        [m.name, f"{m.parameters / 1e9:,.2f}B", str(m.layers), m.model_id or ""] for m in models
    ]
    report.tables(Table(["model", "parameters", "layers", "on the Hub"], rows, left={0, 3}))
