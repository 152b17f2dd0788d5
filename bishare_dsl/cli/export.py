"""``bishare export``: an adapter for programs that know only plain LoRA."""

from __future__ import annotations

from pathlib import Path

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.report import Report
from bishare_dsl.export import DTYPES, EXPERTS, FORMATS


@click.command(
    "export",
    epilog=options.examples(
        "bishare export my-adapter --model llama-7b --out for-peft",
        "bishare export my-adapter --model llama-7b --out small --rank 8 --dtype bfloat16",
        "bishare export my-adapter --model ./my-checkpoint --out my.gguf --format gguf",
    ),
)
@options.folder
@options.model()
@options.out("The folder to write, or the file for gguf.", "PATH")
@options.choice(
    *("--format", "form"),
    among=FORMATS,
    default="peft",
    help="For PEFT and vLLM, for llama.cpp, or for mlx-lm.",
)
@options.rank
@options.choice("--dtype", among=DTYPES, default="float32", help="Of the values.")
@click.option(
    "--uniform-rank",
    is_flag=True,
    help="Write one rank for all modules, for engines that know no rank_pattern.",
)
@options.choice(
    "--experts",
    among=EXPERTS,
    default="fused",
    help="How a folder has experts: as PEFT does; or as vLLM and SGLang do, each by itself, or with one "
    "outer factor for all.",
)
@click.pass_obj
def command(
    report: Report,
    folder: Path,
    model: str,
    out: Path,
    form: str,
    rank: int | None,
    dtype: str,
    uniform_rank: bool,
    experts: str,
) -> None:
    """Write an adapter as one plain LoRA, for PEFT and vLLM, llama.cpp or mlx-lm.

    The LoRA equals the adapter exactly, unless --rank or --dtype limits it. Every module has the rank that it
    needs. Scales are folded into B. The model's shapes are enough; an adapter with `magnitude` needs its
    weights, and becomes a DoRA of PEFT.
    """
    from bishare_dsl.cli.reading import read_adapter_for

    stored = read_adapter_for(folder, model, report)
    report.note("exporting ...")
    from bishare_dsl.export.export import export_adapter
    from bishare_dsl.models.load import load_model, meta_model

    scales = len(stored.plan.unscaled) < len(stored.plan.terms)  # Then its weights count.
    exported = export_adapter(
        out,
        stored.plan,
        stored.tensors(),
        load_model(model, causal=False)[0] if scales and form == "peft" else meta_model(model),
        form,
        rank=rank,
        dtype=dtype,
        uniform_rank=uniform_rank,
        experts=experts,
    )
    report.all(exported.warnings)
    report.data(**exported.data())
    report.result(str(exported))
