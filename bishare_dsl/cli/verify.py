"""``bishare verify``: whether adapters are applied."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.report import Report, silence_libraries

if TYPE_CHECKING:
    from bishare_dsl.verify.judge import Row


@click.command(
    "verify",
    epilog=options.examples(
        "bishare verify my-lora --model Qwen/Qwen3-0.6B",
        "bishare verify my-lora --model ./base --server http://localhost:8000/v1 --name mine",
        "bishare verify loras/ library#c --model ./base --server http://a:8000/v1 --server http://b:8000/v1",
        "bishare verify my-lora --model ./base --write-card card.json",
        "bishare verify --card card.json --server http://localhost:8000/v1",
    )
    + "\n\nExit codes: 0 all applied (without --server: the files fit), 1 one is not applied as trained, 2 "
    "one cannot be judged.\nA server's key is read from BISHARE_SERVER_KEY.",
)
@options.folders("[DIR...]", required=False)
@options.model(required=False)
@click.option("--server", "urls", multiple=True, metavar="URL", help="Ask this running server.")
@click.option("--name", help="Name of the adapter on the server; by default that of its folder.")
@click.option("--base", help="Name of the base on the server; by default the first model listed.")
@click.option("--card", "cards", multiple=True, type=Path, metavar="FILE", help="A probe card.")
@click.option("--write-card", "out", type=Path, metavar="FILE", help="Write the adapter's card.")
@click.option("--timeout", default=120.0, metavar="SECONDS", help="For a request; 120 by default.")
@click.option("--deadline", default=3600.0, metavar="SECONDS", help="For all; 3600 by default.")
@click.pass_obj
def command(
    report: Report,
    folders: tuple[Path, ...],
    model: str | None,
    urls: tuple[str, ...],
    name: str | None,
    base: str | None,
    cards: tuple[Path, ...],
    out: Path | None,
    timeout: float,
    deadline: float,
) -> None:
    """Find out whether adapters are applied: LoRAs of PEFT, adapters of bishare, or folders of these.

    The files are compared with the model's modules; shapes are enough. With --server, a running server
    (OpenAI's completions with log-probabilities) answers short texts. Its answers are compared with those of
    its base and, if --model has weights, with base + adapter and with known faults, in float32. Several
    adapters or servers become a table.

    A probe card has the expected answers in a file. It judges a server with neither weights nor torch.
    --server and --card may be repeated.
    """
    from bishare_dsl.cli.adapters import adapters_in, load_base, named_folders
    from bishare_dsl.convert.peft_config import check_files
    from bishare_dsl.folder.files import is_peft, read_adapter
    from bishare_dsl.verify.server import TEXTS, Asked, Server, ask

    servers = [Server(url, monotonic() + deadline, timeout) for url in urls]
    places = named_folders([adapter for folder in folders for adapter in adapters_in(folder)])
    if not (places and model and not cards) and not (cards and servers and not places):
        raise click.UsageError("give adapters and --model, or --card and --server")
    if len(places) + len(cards) > 1 and (name or out):
        raise click.UsageError("--name and --write-card are for one adapter")
    places = dict.fromkeys([name], *places.values()) if name and places else places
    for place in places.values() if len(places) == 1 else ():  # Before torch and numpy are loaded.
        (check_files if is_peft(place) else read_adapter)(place)
    from bishare_dsl.verify.card import judge_cards, read_card, write_card

    if model is None:
        named = [(name or card.adapter, card) for card in map(read_card, cards)]
        _report(report, judge_cards(named, servers, base, report.bar), "")
        return
    silence_libraries()
    from bishare_dsl.models.inspect import inspect_model
    from bishare_dsl.models.load import meta_model, require_weights
    from bishare_dsl.models.source import resolve
    from bishare_dsl.verify.reference import Reference, judge_all, read_contents
    from bishare_dsl.writing import replace_file

    source = require_weights(model) if out or report.strict else resolve(model)
    shapes: Any = meta_model(source)
    architecture, reference = inspect_model(shapes, source.name), None
    asked = {server.url: ask(server, list(places), base, report.bar) for server in servers}
    answered = any(isinstance(one, Asked) for told in asked.values() for one in told.values())
    if out or report.strict or (answered and source.kind not in ("preset", "config")):
        shapes, tokenizer = load_base(model, "float32", "cpu", report)
        reference = Reference(shapes, tokenizer, TEXTS)
    if out and reference is not None:
        ((adapter, place),) = places.items()
        found = read_contents(place, shapes, architecture)
        replace_file(out, write_card(reference, found, adapter, source.name).encode())
    how = (report.bar, report.strict)
    _report(report, judge_all(asked, places, shapes, reference, architecture, *how), source.name)


def _report(report: Report, rows: Sequence[Row], model: str) -> None:
    """Report a row in full, or several as a table."""
    from bishare_dsl.show.table import Table
    from bishare_dsl.verify.judge import problems_in

    report.data(rows=[row.data() for row in rows])
    if len(rows) > 1:
        cells = [[r.adapter, r.server, r.word, r.evidence()] for r in rows]
        report.tables(Table(["adapter", "server", "verdict", "why"], cells, {0, 1, 2, 3}))
    for row in rows if len(rows) == 1 else ():
        report.all(row.problems)
        report.result(f"files     {row.files}")
        numbers = ", ".join(f"{what} {value:.2g}" for what, value in row.numbers.items())
        if row.server:
            report.result(f"server    {numbers or row.server}")
        report.result(f"verdict   {': '.join(filter(None, (row.word, row.why)))}")
        if row.unseen:
            report.result(f"not seen  {'; '.join(row.unseen)}")
    report.all(problems_in(rows, model))
