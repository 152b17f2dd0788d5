"""``bishare models``: the models that are known by name."""

from __future__ import annotations

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.report import Report


@click.command(
    "models", epilog=options.examples("bishare models", "bishare plan lora --model qwen3-8b")
)
@options.quiet
@options.as_json
@click.pass_obj
def command(report: Report) -> None:
    """List the presets: models whose shapes are known, so that `--model NAME` needs no file of theirs."""
    from bishare_dsl.models import PRESETS, preset

    models = [preset(name) for name in PRESETS]
    report.data(models=[model.model_dump(exclude={"sites"}) for model in models])
    width = max(len(model.name) for model in models)
    for model in models:
        size = f"{model.parameters / 1e9:,.2f}B"
        report.result(f"{model.name:{width}}  {size:>8}  {model.layers:3} layers  {model.model_id}")
