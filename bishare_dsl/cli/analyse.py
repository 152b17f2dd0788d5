"""``bishare analyse``: what the modules of adapters have in common, beside what chance gives."""

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
@click.argument(
    "folders", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="ADAPTER..."
)
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
    """Measure what the updates of an adapter's modules have in common: of each layer, and of each kind across
    layers; of several adapters, with each other too.

    ADAPTER is the folder of an adapter, or a LoRA of PEFT. The model's shapes are enough.

    Each measure stands beside what independent updates give. What A started as is taken away where the seed
    tells it.
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
        # What was read goes as soon as its updates are known.
        adapters.append(read_updates(name, stored.pop(name)))
    report.note("measuring ...")
    found = [analysis.analyse(one, seed=seed) for one in adapters]
    charts = analysis.compare_adapters(adapters, seed=seed) if len(adapters) > 1 else ()
    report.data(**figures(found, charts))
    report.tables(*parts(found, charts))
    if html is not None:
        replace_file(html, page(found, charts).encode())
        report.data(html=str(html))
        report.note(f"written: {html}")
