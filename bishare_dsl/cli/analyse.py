"""``bishare analyse``: measure what the modules of adapters have in common."""

from __future__ import annotations

from pathlib import Path

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.report import Report


@click.command(
    "analyse",
    epilog=options.examples(
        "bishare analyse my-lora --model llama-7b --html analysis.html",
        "bishare analyse peft-a peft-b --model ./my-checkpoint",
        "bishare analyse my-lora --model llama-7b --json | jq '.adapters[0].joint'",
    ),
)
@options.folders("ADAPTER...")
@options.model()
@options.html("Write a page with a heat map of each measure; it needs no network.")
@options.seed
@click.pass_obj
def command(
    report: Report,
    folders: tuple[Path, ...],
    model: str,
    html: Path | None,
    seed: int,
) -> None:
    """Measure what the updates of an adapter's modules have in common: in each layer, in each kind across
    layers and, with several adapters, between adapters.

    ADAPTER is the folder of an adapter, or a LoRA of PEFT. The model's shapes are enough.

    Each measure is compared with independent updates. The initial values of A are subtracted if the adapter
    records its seed.
    """
    from bishare_dsl.analyse import analysis
    from bishare_dsl.analyse.figures import figures
    from bishare_dsl.analyse.page import page
    from bishare_dsl.analyse.read import read_updates
    from bishare_dsl.analyse.tables import parts
    from bishare_dsl.cli.candidates import read_adapters
    from bishare_dsl.writing import replace_file

    stored = read_adapters(folders, model, report)
    adapters = []
    for name in [*stored]:
        report.note(f"reading {name} ...")
        # Free the tensors once the updates are computed.
        adapters.append(read_updates(name, stored.pop(name)))
    report.note("measuring ...")
    analyses = [analysis.analyse(one, seed=seed) for one in adapters]
    charts = analysis.compare_adapters(adapters, seed=seed) if len(adapters) > 1 else ()
    report.data(**figures(analyses, charts))
    report.tables(*parts(analyses, charts))
    if html is not None:
        replace_file(html, page(analyses, charts).encode())
        report.data(html=str(html))
        report.note(f"written: {html}")
