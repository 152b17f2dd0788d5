"""``bishare convert``: an adapter in the layout of another program."""

from __future__ import annotations

from pathlib import Path

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.report import Report
from bishare_dsl.export import DTYPES, TARGETS


@click.command(
    "convert",
    epilog=options.examples(
        "bishare convert from-peft --for sglang --model ./base --out served",
        "bishare convert from-mlx --for peft --model ./base --out lora",
        "bishare convert my.gguf --for vllm --model ./base --out lora",
    ),
)
@click.argument("adapter", type=click.Path(path_type=Path))
@options.choice("--for", "target", among=TARGETS, required=True, help="The program to write for.")
@options.model()
@options.out("The folder to write, or the file for gguf.", "PATH")
@options.rank
@options.choice("--dtype", among=DTYPES, default="float32", help="Of the values.")
@click.pass_obj
def command(
    report: Report,
    adapter: Path,
    target: str,
    model: str,
    out: Path,
    rank: int | None,
    dtype: str,
) -> None:
    """Convert an adapter into the layout of another program.

    Reads the layouts of bishare, PEFT, vLLM, SGLang, Tinker, Megatron-Bridge, mlx-lm and llama.cpp. Every
    tensor is used, and what was written is read again and compared at every module. The model's shapes
    are enough.
    """
    from bishare_dsl.cli.reading import read_adapter_for

    stored = read_adapter_for(adapter, model, report)
    report.note("converting ...")
    from bishare_dsl.export.convert import convert
    from bishare_dsl.models.load import meta_model

    found = convert(
        out, stored.plan, stored.tensors(), meta_model(model), target, rank=rank, dtype=dtype
    )
    report.all(found.export.warnings)
    report.data(**found.data())
    report.result(str(found))
