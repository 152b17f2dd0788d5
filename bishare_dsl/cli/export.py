"""``bishare export``: an adapter for programs that know only plain LoRA."""

from __future__ import annotations

from pathlib import Path

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.report import Report

FORMATS = ("peft",)


def _formats(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in FORMATS if name.startswith(incomplete)]


@click.command(
    "export",
    epilog=options.examples(
        "bishare export my-adapter --format peft --model llama-7b --out for-peft",
        "vllm serve MODEL --enable-lora --lora-modules mine=for-peft --max-lora-rank 32",
    ),
)
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--format", "form", required=True, metavar="peft", shell_complete=_formats, help="Whose form."
)
@options.model()
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The folder to write.",
)
@options.force
@options.as_json
@options.quiet
@click.pass_obj
def command(report: Report, folder: Path, form: str, model: str, out: Path, force: bool) -> None:
    """Write an adapter as one plain LoRA, for PEFT and for what serves PEFT's adapters, such as vLLM.

    The LoRA adds to the base exactly what the adapter adds: one rank for all modules, scales folded into B.
    The model's shapes are enough.
    """
    from bishare_dsl.cli.reading import adapter_for
    from bishare_dsl.diagnostics import AdapterError, nearest
    from bishare_dsl.diagnostics.codes.adapter import UNKNOWN_FORMAT

    if form not in FORMATS:
        raise AdapterError(UNKNOWN_FORMAT(format=form, help=nearest(form, FORMATS)))
    stored = adapter_for(folder, model, report)
    report.note("exporting ...")
    from bishare_dsl.export.peft import export_peft
    from bishare_dsl.models.load import meta_model

    base = meta_model(model)
    exported = export_peft(out, stored.plan, stored.tensors(), base, force=force)
    report.all(exported.warnings)
    report.data(
        out=str(out),
        modules=exported.modules,
        rank=exported.rank,
        max_lora_rank=exported.max_lora_rank,
    )
    report.result(str(exported))
