"""``bishare eval``: count how often adapters and their base prefer the correct option."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.report import Report

if TYPE_CHECKING:
    from bishare_dsl.folder.contents import StoredAdapter


@click.command(
    "eval",
    epilog=options.examples(
        "bishare eval my-adapter --base --model ./my-checkpoint --data held-out.jsonl",
        "bishare eval library --model ./my-checkpoint --data customers --json",
    ),
)
@options.folders("[DIR]...", required=False)
@options.model(required=False, weights=True)
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE|DIR",
    help="Examples with a prompt, `options`, and the correct option as completion; or a folder, in which "
    "an adapter x is judged on x.jsonl, and the base on all of these.",
)
@click.option("--adapter", "named", multiple=True, type=click.Path(path_type=Path), hidden=True)
@click.option("--base", is_flag=True, help="Also evaluate the base, first.")
@click.option(
    "--batch_size", type=click.IntRange(1), default=16, metavar="N", help="Sequences at once (16)."
)
@options.dtype
@options.device
@click.pass_obj
def command(
    report: Report,
    /,
    folders: tuple[Path, ...],
    named: tuple[Path, ...],
    model: str | None,
    data: Path,
    base: bool,
    batch_size: int,
    dtype: str | None,
    device: str | None,
) -> None:
    """Count in how many of your examples the correct option is the likeliest, on a base that is loaded once.

    By default the base is the model that the first DIR names. Without DIR the base alone is evaluated; with
    --base it comes first. A library stands for all its adapters. Adapters and examples are checked before the
    model is loaded. If you interrupt the command, finished results are printed.

    For tasks of lm-evaluation-harness run `python -m bishare_dsl.autoload on` once, and then `lm_eval run
    --model hf --model_args pretrained=MODEL,peft=DIR`.
    """
    from bishare_dsl.cli.adapters import BASE, adapted, base_name, load_base, read_adapters
    from bishare_dsl.models.load import require_weights
    from bishare_dsl.train.data.load import load_rows

    folders += named
    if model is None and not folders:
        raise click.UsageError("missing option '--model', such as --model ./base")
    model = model or base_name(folders[0], None)
    require_weights(model)
    adapters = read_adapters(folders, model, report)
    models: dict[str, StoredAdapter | None] = {}
    if base or not adapters:
        models[BASE] = None
    models |= adapters
    files = _files_of(adapters, data)
    rows = {file: load_rows(str(file)) for file in dict.fromkeys(files.values() or [data])}
    files.setdefault(BASE, data)
    from bishare_dsl.train.data.batches import Collator
    from bishare_dsl.train.loss import choice_accuracy, encode_choices

    live, tokenizer = load_base(model, dtype, device, report)
    sets = {file: encode_choices(read, tokenizer) for file, read in rows.items()}
    sets.setdefault(data, [*chain.from_iterable(sets.values())])  # The base is judged on all files.
    collator = Collator.of(tokenizer)
    correct: dict[str, float] = {}
    try:
        for label, adapter in models.items():
            report.note(f"evaluating {label} ({len(correct) + 1} of {len(models)}) ...")
            with adapted(live, adapter, report):
                some = sets[files[label]]
                correct[label] = choice_accuracy(live.eval(), some, collator, batch_size)
    finally:
        if correct:
            report.partial = True
            counts = {label: len(sets[files[label]]) for label in models}
            judged = counts if data.is_dir() else max(counts.values())
            report.data(model=model, data=str(data), rows=judged, accuracy=correct)
            _show(report, correct, counts)


def _files_of(adapters: Iterable[str], data: Path) -> dict[str, Path]:
    """Return the file of examples on which each adapter is judged."""
    if not data.is_dir():
        return dict.fromkeys(adapters, data)
    files: dict[str, Path] = {}
    for label in adapters:
        name = Path(label).name.rpartition("#")[2]
        files[label] = data / f"{name}.jsonl"
    return files


def _show(report: Report, correct: Mapping[str, float], counts: Mapping[str, int]) -> None:
    from bishare_dsl.show.table import Table

    rows = [[label, counts[label], f"{accuracy:.1%}"] for label, accuracy in correct.items()]
    report.tables(Table(["model", "rows", "correct"], rows))
