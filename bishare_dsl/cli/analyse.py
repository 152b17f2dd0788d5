"""``bishare analyse``: measure which modules of adapters could share a factor."""

from __future__ import annotations

from pathlib import Path

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.report import Report


@click.command(
    "analyse",
    epilog=options.examples(
        "bishare analyse lora-seed-0 lora-seed-1 --model llama-7b",
        "bishare analyse my-lora --model llama-7b --json | jq '.adapters'",
    ),
)
@options.folders("ADAPTER...")
@options.model()
@options.seed
@click.pass_obj
def command(report: Report, folders: tuple[Path, ...], model: str, seed: int) -> None:
    """Measure which modules of adapters could share a factor (experimental).

    The table shows how much of their updates one A or one B would keep if the modules of a layer, a kind or
    another key shared it, beside chance. Numbers are averages over the adapters; the last column is the
    smallest of any of them.

    ADAPTER is the folder of an adapter, or a LoRA of PEFT. The model's shapes are enough.

    The initial values of A are subtracted if the adapter records its seed.
    """
    from dataclasses import asdict

    from bishare_dsl.cli.adapters import read_adapters

    stored = read_adapters(folders, model, report)
    from bishare_dsl.fit.analysis import analyse, table

    named = report.bar(stored.items(), "measuring")
    analyses = {name: analyse(adapter, seed=seed) for name, adapter in named}
    report.data(adapters={name: [*map(asdict, rows)] for name, rows in analyses.items()})
    report.tables(table([*analyses.values()]))
