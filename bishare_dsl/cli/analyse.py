"""``bishare analyse``: measure what the modules of adapters have in common."""

from __future__ import annotations

from pathlib import Path

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.report import Report


@click.command(
    "analyse",
    epilog=options.examples(
        "bishare analyse my-lora --model llama-7b",
        "bishare analyse peft-a peft-b --model ./my-checkpoint",
        "bishare analyse my-lora --model llama-7b --json | jq '.adapters[0].joint'",
    ),
)
@options.folders("ADAPTER...")
@options.model()
@options.seed
@click.pass_obj
def command(
    report: Report,
    folders: tuple[Path, ...],
    model: str,
    seed: int,
) -> None:
    """Measure which modules of an adapter could share a factor: how much of their updates one A, one B or one
    pair would keep if the modules of a layer, a kind or another key shared it.

    ADAPTER is the folder of an adapter, or a LoRA of PEFT. The model's shapes are enough.

    Every number is compared with independent updates. The initial values of A are subtracted if the adapter
    records its seed.
    """
    from bishare_dsl.analyse.analysis import analyse
    from bishare_dsl.analyse.finding import finding
    from bishare_dsl.analyse.read import read_updates
    from bishare_dsl.analyse.tables import parts
    from bishare_dsl.cli.candidates import read_adapters

    stored = read_adapters(folders, model, report)
    adapters = []
    for name in [*stored]:
        report.note(f"reading {name} ...")
        # Free the tensors once the updates are computed.
        adapters.append(read_updates(name, stored.pop(name)))
    report.note("measuring ...")
    analyses = [analyse(adapter, seed=seed) for adapter in adapters]
    report.data(finding=finding(analyses), adapters=[analysis.data() for analysis in analyses])
    report.tables(*parts(analyses))
