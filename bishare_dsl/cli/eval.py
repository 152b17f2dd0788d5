"""``bishare eval``: count how often adapters and their base prefer the correct option."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.report import Report

if TYPE_CHECKING:
    from bishare_dsl.folder.contents import StoredAdapter


@dataclass(frozen=True)
class Result:
    """How often a model prefers the correct option.

    Attributes:
        label: of the adapter, or of the base.
        without: the share that was disabled, or None for the whole adapter.
        rows: how many examples it was judged on.
        correct: the part of them in which the correct option is the likeliest.
    """

    label: str
    without: str | None
    rows: int
    correct: float

    @property
    def name(self) -> str:
        return self.label if self.without is None else f"{self.label} without {self.without}"


@click.command(
    "eval",
    epilog=options.examples(
        "bishare eval my-adapter --base --model ./my-checkpoint --data held-out.jsonl",
        "bishare eval library --model ./my-checkpoint --data customers --json",
        "bishare eval my-adapter --ablate --data held-out.jsonl",
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
    "--ablate", is_flag=True, help="Also evaluate each adapter without each of its shares."
)
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
    ablate: bool,
    batch_size: int,
    dtype: str | None,
    device: str | None,
) -> None:
    """Count in how many of your examples the correct option is the likeliest, on a base that is loaded once.

    By default the base is the model that the first DIR names. Without DIR the base alone is evaluated; with
    --base it comes first. A library stands for all its adapters. With --ablate, an adapter is also judged
    without each of its shares. Adapters and examples are checked before the model is loaded. If you
    interrupt the command, finished results are printed.

    For tasks of lm-evaluation-harness run `python -m bishare_dsl.autoload on` once, and then `lm_eval run
    --model hf --model_args pretrained=MODEL,peft=DIR`.
    """
    from bishare_dsl.cli.adapters import BASE, adapted, base_name, load_base, read_adapters
    from bishare_dsl.models.load import require_weights
    from bishare_dsl.train.data.load import load_rows

    folders += named
    if model is None and not folders:
        raise click.UsageError("missing option '--model', such as --model ./base")
    if ablate and not folders:
        raise click.UsageError("--ablate needs an adapter, because a base has no shares")
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
    shares = _shares_of(models) if ablate else dict.fromkeys(models, ())
    count = len(models) + sum(map(len, shares.values()))
    results: list[Result] = []

    def evaluate(label: str, without: str | None) -> None:
        some = sets[files[label]]
        result = Result(label, without, len(some), 0.0)
        report.note(f"evaluating {result.name} ({len(results) + 1} of {count}) ...")
        correct = choice_accuracy(live.eval(), some, collator, batch_size)
        results.append(replace(result, correct=correct))

    try:
        for label, adapter in models.items():
            with adapted(live, adapter, report):
                evaluate(label, None)
                for share in shares[label]:
                    with live.bishare.disable_share(share):  # type: ignore[union-attr, operator]
                        evaluate(label, share)
    finally:
        if results:
            report.partial = True
            counts = {label: len(sets[files[label]]) for label in models}
            judged = counts if data.is_dir() else max(counts.values())
            _show(report, results, model=model, data=str(data), rows=judged)


def _shares_of(models: Mapping[str, StoredAdapter | None]) -> dict[str, tuple[str, ...]]:
    """Return the names of the shares of each adapter; the base has none."""
    from bishare_dsl.plan.together import share_names

    shares: dict[str, tuple[str, ...]] = {}
    for label, adapter in models.items():
        shares[label] = () if adapter is None else tuple(share_names(adapter.plan))
    return shares


def _by_share(results: Iterable[Result]) -> dict[str, dict[str, float]]:
    """Return the accuracy of each adapter without each of its shares."""
    by_share: dict[str, dict[str, float]] = {}
    for result in results:
        if result.without is not None:
            by_share.setdefault(result.label, {})[result.without] = result.correct
    return by_share


def _files_of(adapters: Iterable[str], data: Path) -> dict[str, Path]:
    """Return the file of examples on which each adapter is judged."""
    if not data.is_dir():
        return dict.fromkeys(adapters, data)
    files: dict[str, Path] = {}
    for label in adapters:
        name = Path(label).name.rpartition("#")[2]
        files[label] = data / f"{name}.jsonl"
    return files


def _show(report: Report, results: Sequence[Result], **about: object) -> None:
    """Show accuracies as a table, or as data together with what they are about."""
    from bishare_dsl.show.table import Table

    accuracy = {result.label: result.correct for result in results if result.without is None}
    report.data(**about, accuracy=accuracy)
    without = _by_share(results)
    if without:
        report.data(without=without)
    rows = [[result.name, result.rows, f"{result.correct:.1%}"] for result in results]
    report.tables(Table(["model", "rows", "correct"], rows))
