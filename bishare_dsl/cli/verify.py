"""``bishare verify``: whether an adapter is applied."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.report import CommandError, Report, silence_libraries
from bishare_dsl.verify import ENGINES

if TYPE_CHECKING:
    from bishare_dsl.models.source import Source
    from bishare_dsl.verify.contents import Contents
    from bishare_dsl.verify.judge import Verdict
    from bishare_dsl.verify.server import Server


@click.command(
    "verify",
    epilog=options.examples(
        "bishare verify my-lora --model Qwen/Qwen3-0.6B --for vllm",
        "bishare verify my-lora --model ./base --server http://localhost:8000/v1 --name mine",
        "bishare verify my-lora --model ./base --server http://localhost:8000/v1 --name mine --copies",
    )
    + "\n\nExit codes: 0 applied (without --server: nothing is wrong), 1 not applied as trained, 2 cannot be "
    "judged.\nA server's key is read from BISHARE_SERVER_KEY.",
)
@options.folder
@options.model()
@options.choice(
    "--for", "engine", among=ENGINES, help="Report what this engine ignores or refuses."
)
@click.option(
    "--server", metavar="URL", help="Ask a running server, such as http://localhost:8000/v1."
)
@click.option("--name", help="Name of the adapter on the server; by default that of its folder.")
@click.option("--base", help="Name of the base on the server; by default the first model listed.")
@click.option(
    "--copies",
    is_flag=True,
    help="Load about 20 changed copies into the server. Not for production.",
)
@click.option(
    "--scratch",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="DIR",
    help="Folder for the copies; the server must be able to read it.",
)
@click.pass_obj
def command(
    report: Report,
    folder: Path,
    model: str,
    engine: str | None,
    server: str | None,
    name: str | None,
    base: str | None,
    copies: bool,
    scratch: Path | None,
) -> None:
    """Find out whether an adapter is applied: any LoRA of PEFT, or adapter of bishare.

    The files are compared with the model's modules; shapes are enough. With --server, a running server
    (OpenAI's completions with log-probabilities) answers short texts. Its answers are compared with those of
    its base and, if --model has weights, with base + adapter and with known faults, in float32.
    """
    from bishare_dsl.diagnostics.codes import usage

    for given, word in ((copies, "--copies"), (name, "--name"), (base, "--base")):
        if given and server is None:
            raise CommandError(usage.WRONG_USAGE(what=f"{word} needs --server URL"))
    silence_libraries()
    from bishare_dsl.models.load import meta_model
    from bishare_dsl.models.source import resolve
    from bishare_dsl.verify.contents import read_contents
    from bishare_dsl.verify.engines import engine_problems

    source = resolve(model)
    contents = read_contents(folder, meta_model(source), source.name)
    report.all(contents.problems)
    report.all(engine_problems(contents, engine) if engine else ())
    ranks = f", rank {' and '.join(map(str, contents.ranks))}" if contents.ranks else ""
    report.data(modules=len(contents.named), ranks=contents.ranks)
    report.result(f"files     {len(contents.named)} modules{ranks}")
    if server is None:
        errors = f"{report.errors} error{'s' * (report.errors > 1)} in the files"
        report.result(f"verdict   {errors if report.errors else 'the files fit the model'}")
        return
    from bishare_dsl.verify.server import Server

    at, name = Server(server), name or folder.name
    verdict = _of_server(report, contents, source, at, name, base, scratch, copies)
    numbers = ", ".join(f"{what} {value:.2g}" for what, value in verdict.numbers.items())
    report.data(**asdict(verdict))
    report.result(f"server    {numbers}\nverdict   {verdict.sentence}")
    if verdict.unseen:
        report.result(f"not seen  {'; '.join(verdict.unseen)}")


def _of_server(
    report: Report,
    contents: Contents,
    source: Source,
    server: Server,
    name: str,
    base: str | None,
    scratch: Path | None,
    copies: bool,
) -> Verdict:
    """Ask a server, and report what is wrong."""
    from bishare_dsl.adapter.files import CONFIG
    from bishare_dsl.diagnostics.codes import verify as codes
    from bishare_dsl.models.load import load_model
    from bishare_dsl.verify.answers import TEXTS
    from bishare_dsl.verify.copies import Copies
    from bishare_dsl.verify.judge import MOST_NOISE, UNKNOWN, ask, judge, unseen_modules
    from bishare_dsl.verify.reference import Reference
    from bishare_dsl.verify.server import VerifyError

    base = server.base(name) if base is None else base
    asked = ask(server, name, base, report.note)
    reference = None
    if source.kind not in ("preset", "config") and contents.complete:
        report.note(f"loading {source.place} in float32 ...")
        model, tokenizer = load_model(source, dtype="float32")
        reference = Reference(model, tokenizer, TEXTS) if tokenizer is not None else None
    verdict = judge(asked, name, contents, reference)
    copied = contents.plain and (contents.folder / CONFIG).is_file()
    if copies and copied and asked.noise <= MOST_NOISE:
        try:
            with TemporaryDirectory(dir=scratch, prefix="bishare-verify-") as folder:
                Copies(server, contents, asked, base, name, Path(folder), report.note).test(verdict)
        except VerifyError as error:  # Report the result without copies.
            report.error(error)
    elif copies:
        verdict.unseen.append(
            "what copies tell: there are none of experts, embeddings and libraries, nor on a busy server"
        )
    verdict.unseen += unseen_modules(contents)
    for warning in verdict.warnings:
        report.note(f"warning: {warning}")
    if verdict.faults:
        report.problem(
            codes.NOT_AS_TRAINED(name=name, words=" and ".join(w for w, _ in verdict.faults))
        )
    elif verdict.word == UNKNOWN:
        report.problem(codes.CANNOT_JUDGE(name=name))
    return verdict
