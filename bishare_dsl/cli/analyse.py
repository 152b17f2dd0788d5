"""``bishare analyse``: what the modules of adapters have in common, beside what chance gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.files import check_out
from bishare_dsl.cli.report import Report


@click.command(
    "analyse",
    epilog=options.examples(
        "bishare analyse my-lora --model llama-7b --out analysis",
        "bishare analyse peft-a peft-b --model ./my-checkpoint --data rows.jsonl --out analysis",
        "bishare analyse my-lora --model llama-7b --out analysis --json | jq '.adapters[0].joint'",
    ),
)
@click.argument(
    "folders", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="ADAPTER..."
)
@options.model()
@options.data
@options.rows
@options.out("The folder for the page, the figures as JSON, and the heat maps as SVG.")
@click.option(
    "--rank",
    type=click.IntRange(min=1),
    metavar="N",
    help="Of the common factors that are told of; by default the updates' own.",
)
@options.keep_starts
@options.seed
@options.dtype
@options.device
@click.pass_obj
def command(
    report: Report,
    folders: tuple[Path, ...],
    model: str,
    data: str | None,
    rows: int,
    out: Path,
    rank: int | None,
    keep_starts: bool,
    seed: int,
    dtype: str | None,
    device: str | None,
) -> None:
    """Measure what the updates of an adapter's modules have in common: of each layer, and of each kind across
    layers; of several adapters, with each other too.

    ADAPTER is the folder of an adapter, or a LoRA of PEFT. The model's shapes are enough, unless there are
    --data: then each share is left out in turn.

    Each measure stands beside what independent updates give. What A
    started as is taken away where the seed tells it.
    """
    from bishare_dsl.adapter.handle import Handle
    from bishare_dsl.analyse import analysis
    from bishare_dsl.analyse.batches import batches_of
    from bishare_dsl.analyse.figures import figures
    from bishare_dsl.analyse.read import read_updates
    from bishare_dsl.analyse.text import parts
    from bishare_dsl.analyse.worth import worth
    from bishare_dsl.analyse.write import write
    from bishare_dsl.cli.candidates import adapted, load_base, read_adapters
    from bishare_dsl.compiler import read_fitting
    from bishare_dsl.writing import new_folder

    check_out(out)
    stored = read_adapters(folders, model, report)
    adapters = []
    for name in [*stored]:
        report.note(f"reading {name} ...")
        # What was read goes as soon as its updates are known.
        adapters.append(read_updates(name, stored.pop(name), keep_starts=keep_starts))
    report.note("measuring ...")
    found = [analysis.analyse(one, rank=rank, seed=seed) for one in adapters]
    charts = analysis.compare_adapters(adapters, seed=seed) if len(adapters) > 1 else ()
    if data is not None:
        live, tokenizer = load_base(model, dtype, device, report)
        batches = batches_of(data, tokenizer, rows)
        for i, one in enumerate(found):
            with adapted(live, read_fitting(one.adapter.folder, live)[0], report):
                handle = live.bishare
                assert isinstance(handle, Handle)
                found[i] = replace(one, worth=worth(handle, batches))
    with new_folder(out.resolve()) as new:
        write(new, found, charts)
    report.data(out=str(out), **figures(found, charts))
    report.tables(*parts(found, charts))
    report.note(f"written: {out / 'analysis.html'}")
