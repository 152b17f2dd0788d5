"""``bishare import``: a plain LoRA of PEFT as an adapter."""

from __future__ import annotations

from pathlib import Path

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.report import CommandError, Report


@click.command(
    "import",
    epilog=options.examples(
        "bishare import peft-lora --out my-adapter",
        "bishare import peft-lora --out my-adapter --model ./my-checkpoint",
    ),
)
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@options.model(required=False)
@options.out("The folder to write.")
@options.force
@click.pass_obj
def command(report: Report, folder: Path, model: str | None, out: Path, force: bool) -> None:
    """Make an adapter of a plain LoRA that PEFT has saved, and print its spec.

    It adds to every module exactly what the LoRA adds. The base is the one that the LoRA names, unless
    another one is given; its shapes are enough.
    """
    from bishare_dsl.adapter.files import CONFIG
    from bishare_dsl.cli.files import check_out
    from bishare_dsl.compiler import import_peft
    from bishare_dsl.diagnostics.codes import usage as codes
    from bishare_dsl.export.peft_config import read_config

    check_out(out, CONFIG, force=force)
    base = model or read_config(folder).base_model_name_or_path
    if base is None:
        raise CommandError(codes.WRONG_USAGE(what="the LoRA names no base: give --model"))
    report.note(f"importing for {base} ...")
    text = import_peft(folder, base, out, tell=report.problem)
    report.data(out=str(out), spec=text)
    report.result(text.rstrip())
    report.note(f"saved in {out}")
