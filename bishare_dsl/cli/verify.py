"""``bishare verify``: whether adapters are applied."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.report import CommandError, Report, silence_libraries

if TYPE_CHECKING:
    from bishare_dsl.verify.run import Row


@click.command(
    "verify",
    epilog=options.examples(
        "bishare verify my-lora --model Qwen/Qwen3-0.6B",
        "bishare verify my-lora --model ./base --server http://localhost:8000/v1 --name mine",
        "bishare verify loras/ library#c --model ./base --server http://a:8000/v1 --server http://b:8000/v1",
    )
    + "\n\nExit codes: 0 all applied (without --server: the files fit), 1 one is not applied as trained, 2 "
    "one cannot be judged.\nA server's key is read from BISHARE_SERVER_KEY.",
)
@options.folders()
@options.model()
@click.option(
    "--server",
    "urls",
    multiple=True,
    metavar="URL",
    help="Ask a running server, such as http://localhost:8000/v1. May be repeated.",
)
@click.option("--name", help="Name of the adapter on the server; by default that of its folder.")
@click.option("--base", help="Name of the base on the server; by default the first model listed.")
@click.option(
    "--deadline",
    type=click.IntRange(min=1),
    default=3600,
    metavar="SECONDS",
    help="Time for all requests together; by default 3600. One request may take 120 seconds.",
)
@click.pass_obj
def command(
    report: Report,
    folders: tuple[Path, ...],
    model: str,
    urls: tuple[str, ...],
    name: str | None,
    base: str | None,
    deadline: int,
) -> None:
    """Find out whether adapters are applied: LoRAs of PEFT, adapters of bishare, or folders of these.

    The files are compared with the model's modules; shapes are enough. With --server, a running server
    (OpenAI's completions with log-probabilities) answers short texts. Its answers are compared with those of
    its base and, if --model has weights, with base + adapter and with known faults, in float32. Several
    adapters or servers become a table.
    """
    from bishare_dsl.cli.adapters import adapters_in, named_folders
    from bishare_dsl.diagnostics.codes import usage

    for given, word in ((name, "--name"), (base, "--base")):
        if given and not urls:
            raise CommandError(usage.WRONG_USAGE(what=f"{word} needs --server URL"))
    places = named_folders([adapter for folder in folders for adapter in adapters_in(folder)])
    if name is not None:
        if len(places) > 1:
            raise CommandError(usage.WRONG_USAGE(what="--name is for one adapter"))
        places = dict.fromkeys([name], *places.values())
    _check(*places.values())
    silence_libraries()
    from bishare_dsl.models.inspect import inspect_model
    from bishare_dsl.models.load import load_model, meta_model
    from bishare_dsl.models.source import resolve
    from bishare_dsl.verify.answers import TEXTS
    from bishare_dsl.verify.reference import Reference
    from bishare_dsl.verify.run import ask_all, file_rows, judge_all, read_all
    from bishare_dsl.verify.server import Server

    servers = [Server(url, monotonic() + deadline) for url in urls]
    source = resolve(model)
    shapes = meta_model(source)
    architecture = inspect_model(shapes, source.name)
    contents = read_all(places, shapes, architecture, report.bar)
    if not servers:
        _report(report, file_rows(contents), source.name)
        return
    asked = ask_all(servers, list(places), base, report.bar)
    reference = None
    if source.kind not in ("preset", "config"):
        report.note(f"loading {source.place} in float32 ...")
        weights, tokenizer = load_model(source, dtype="float32")
        reference = Reference(weights, tokenizer, TEXTS) if tokenizer is not None else None
    rows = judge_all(asked, contents, places, reference, architecture, report.bar)
    _report(report, rows, source.name)


def _check(folder: Path, *others: Path) -> None:
    """Check before torch is loaded that a single folder is an adapter, and that a LoRA is whole.

    Raises:
        AdapterError: it is not.
    """
    from bishare_dsl.adapter.files import is_peft, read_adapter
    from bishare_dsl.export.peft_config import check_files

    if not others:
        (check_files if is_peft(folder) else read_adapter)(folder)


def _report(report: Report, rows: Sequence[Row], model: str) -> None:
    """Report a row in full, or several as a table."""
    from bishare_dsl.show.table import Table
    from bishare_dsl.verify.run import problems_in

    report.data(rows=[row.data() for row in rows])
    for row in rows:
        for warning in row.verdict.warnings:
            report.note(f"warning: {row.server} {warning}")
    if len(rows) > 1:
        head = ["adapter", "server", "verdict", "why"]
        lines = [[r.adapter, r.server, r.verdict.word, r.why] for r in rows]
        report.tables(Table(head, lines, {0, 1, 2, 3}))
    for row in rows if len(rows) == 1 else ():
        report.all(row.files.problems)
        report.result(f"files     {row.files}")
        numbers = ", ".join(f"{what} {value:.2g}" for what, value in row.verdict.numbers.items())
        if row.server:
            report.result(f"server    {numbers or row.server}")
        report.result(
            f"verdict   {row.verdict.word}{': ' * bool(row.verdict.why)}{row.verdict.why}"
        )
        if row.verdict.unseen:
            report.result(f"not seen  {'; '.join(row.verdict.unseen)}")
    report.all(problems_in(rows, model))
