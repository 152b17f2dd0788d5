"""``bishare verify``: whether adapters are applied."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.report import Report, silence_libraries
from bishare_dsl.diagnostics import AdapterError, BishareError
from bishare_dsl.diagnostics.codes.adapter import FOLDER_EXISTS

if TYPE_CHECKING:
    from bishare_dsl.verify.judge import Verdict
    from bishare_dsl.verify.server import Server


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
@click.option(
    "--write-card",
    "out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the adapter's card.",
)
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
    its base and, if --model has weights, with base + adapter in float32. Several adapters or servers become a
    table.

    A probe card has the expected answers in a file. It judges a server with neither weights nor torch.
    --server and --card may be repeated.
    """
    from bishare_dsl.cli.adapters import adapters_in, named_folders
    from bishare_dsl.verify.server import Server

    servers = [Server(url, monotonic() + deadline, timeout) for url in urls]
    places = named_folders([adapter for folder in folders for adapter in adapters_in(folder)])
    _check_sources(places, model, cards, urls)
    if len(places) + len(cards) > 1 and (name or out):
        raise click.UsageError("--name and --write-card are for one adapter")
    if out is not None:
        _check_place(out)
    if len(places) == 1:
        ((label, place),) = places.items()
        _check_files(place)
        places = {name or label: place}
    if model is None:
        _judge_by_cards(report, cards, name, servers, base)
    else:
        _judge_by_model(report, places, model, servers, base, out)


def _check_sources(
    places: Collection[str], model: str | None, cards: Collection[Path], urls: Collection[str]
) -> None:
    """Check that there are adapters and a model, or cards and servers."""
    by_model = bool(places and model and not cards)
    by_card = bool(cards and urls and not places)
    if not by_model and not by_card:
        raise click.UsageError("give adapters and --model, or --card and --server")


def _check_place(out: Path) -> None:
    """Check that a card replaces a card, or an empty file, and nothing else.

    Raises:
        AdapterError: another file is there (BS618).
    """
    from bishare_dsl.verify.card import read_card

    if not out.is_file() or out.stat().st_size == 0:
        return
    try:
        read_card(out)
    except BishareError:
        help = "give another `--write-card`: it is no card"
        raise AdapterError(FOLDER_EXISTS(folder=out, help=help)) from None


def _check_files(place: Path) -> None:
    """Check an adapter's files before torch and numpy are loaded."""
    from bishare_dsl.convert.peft_config import check_files
    from bishare_dsl.folder.files import is_peft, read_adapter

    if is_peft(place):
        check_files(place)
    else:
        read_adapter(place)


def _judge_by_cards(
    report: Report,
    cards: Sequence[Path],
    name: str | None,
    servers: Sequence[Server],
    base: str | None,
) -> None:
    """Judge servers by probe cards."""
    from bishare_dsl.verify.card import judge_cards, read_card

    contents = [read_card(path) for path in cards]
    named = [(name or card.adapter, card) for card in contents]
    _report(report, judge_cards(named, servers, base, report.bar), "")


def _judge_by_model(
    report: Report,
    places: Mapping[str, Path],
    model: str,
    servers: Sequence[Server],
    base: str | None,
    out: Path | None,
) -> None:
    """Judge the files of adapters by their base, and servers by what base and adapter answer."""
    from bishare_dsl.cli.adapters import load_base
    from bishare_dsl.verify.card import write_card
    from bishare_dsl.verify.server import TEXTS, Asked, ask

    silence_libraries()
    from bishare_dsl.models.inspect import inspect_model
    from bishare_dsl.models.load import meta_model, require_weights
    from bishare_dsl.models.source import resolve
    from bishare_dsl.verify.reference import Reference, judge_all, read_contents
    from bishare_dsl.writing import replace_file

    needs_weights = bool(out) or report.strict
    source = require_weights(model) if needs_weights else resolve(model)
    shapes: Any = meta_model(source)
    architecture = inspect_model(shapes, source.name)
    asked = {server.url: ask(server, list(places), base, report.bar) for server in servers}
    answered = any(isinstance(one, Asked) for answers in asked.values() for one in answers.values())
    has_weights = source.kind not in ("preset", "config")
    reference = None
    if needs_weights or (answered and has_weights):
        shapes, tokenizer = load_base(model, "float32", "cpu", report)
        reference = Reference(shapes, tokenizer, TEXTS)
    if out and reference is not None:
        ((adapter, place),) = places.items()
        files = read_contents(place, shapes, architecture)
        replace_file(out, write_card(reference, files, adapter, source.name).encode())
    verdicts = judge_all(asked, places, shapes, reference, architecture, report.bar, report.strict)
    _report(report, verdicts, source.name)


def _report(report: Report, verdicts: Sequence[Verdict], model: str) -> None:
    """Report a verdict in full, or several as a table."""
    from bishare_dsl.show.table import Table
    from bishare_dsl.verify.judge import problems_in

    report.data(rows=[verdict.data() for verdict in verdicts])
    if len(verdicts) == 1:
        _report_one(report, verdicts[0])
    else:
        cells = [[v.adapter, v.server, v.word, v.evidence()] for v in verdicts]
        report.tables(Table(["adapter", "server", "verdict", "why"], cells, {0, 1, 2, 3}))
    report.all(problems_in(verdicts, model))


def _report_one(report: Report, verdict: Verdict) -> None:
    report.all(verdict.problems)
    report.result(f"files       {verdict.files}")
    if verdict.server:
        numbers = [f"{name} {_number(value)}" for name, value in verdict.numbers.items()]
        report.result(f"server      {', '.join(numbers) or verdict.server}")
    sentence = f": {verdict.why}" if verdict.why else ""
    report.result(f"verdict     {verdict.word}{sentence}")
    if verdict.not_tested:
        report.result(f"not tested  {'; '.join(verdict.not_tested)}")


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.2g}"
