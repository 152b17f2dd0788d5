"""``bishare convert``: an adapter in the layout of another program."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.report import Report
from bishare_dsl.diagnostics import AdapterError, raise_errors
from bishare_dsl.diagnostics.codes.adapter import EXPORT_OPTION
from bishare_dsl.export import DTYPES, TARGETS

if TYPE_CHECKING:
    from bishare_dsl.adapter.contents import StoredAdapter


@click.command(
    "convert",
    epilog=options.examples(
        "bishare convert from-peft --for sglang --model ./base --out served",
        "bishare convert from-mlx --for peft --model ./base --out lora",
        "bishare convert my.gguf --for vllm --model ./base --out lora",
    ),
)
@click.argument("adapter", type=click.Path(path_type=Path))
@options.choice(
    *("--for", "--format", "target"),
    among=(*TARGETS, "bishare"),
    default="peft",
    help="The program to write for. Those with PEFT's files differ in experts.",
)
@options.model()
@options.out("The folder to write, or the file for gguf.", "PATH")
@options.rank
@options.choice(
    "--dtype",
    among=(*DTYPES, "int8", "int4"),
    default="float32",
    help="Dtype of the values. int8 and int4 are for bishare, and print their error.",
)
@click.option(
    "--uniform-rank",
    is_flag=True,
    help="Write one rank for all modules, for engines without rank_pattern.",
)
@click.pass_obj
def command(
    report: Report,
    adapter: Path,
    target: str,
    model: str,
    out: Path,
    rank: int | None,
    dtype: str,
    uniform_rank: bool,
) -> None:
    """Convert an adapter into the layout of another program.

    Reads the layouts of bishare, PEFT, vLLM, SGLang, Tinker, Megatron-Bridge, mlx-lm and llama.cpp. Every
    tensor is used, and what was written is read again and compared at every module. The model's shapes
    are enough, except to read or write a DoRA of PEFT.
    """
    from bishare_dsl.cli.reading import read_adapter_for

    stored = read_adapter_for(adapter, model, report)
    report.note(f"writing for {target} ...")
    if target == "bishare":
        fit = ("fit", str(adapter), "--spec", "lora", "--set", f"r={rank}", "--out", str(out))
        words = shlex.join(("bishare", *fit, "--model", model))
        fixed = "a folder of bishare has the ranks of its spec"
        refused = {
            "rank": (rank is not None, fixed, f"fit a LoRA of rank {rank} to it: `{words}`"),
            "uniform_rank": (uniform_rank, fixed, "leave out `--uniform-rank`"),
            "dtype": (
                dtype == "float16",
                "bishare writes no float16",
                "use `--dtype bfloat16`, which takes as many bytes",
            ),
        }
        problems = [
            EXPORT_OPTION(option=name, reason=why, help=help)
            for name, (wrong, why, help) in refused.items()
            if wrong
        ]
        raise_errors(AdapterError, problems)
        _save(stored, out, dtype, report)
        return
    from bishare_dsl.export.export import export_adapter
    from bishare_dsl.models.load import load_model, meta_model

    scales = stored.plan.has_magnitudes  # Then the base's weights count.
    exported = export_adapter(
        out,
        stored.plan,
        stored.tensors(),
        load_model(model, causal=False)[0] if scales and target == "peft" else meta_model(model),
        target,
        rank=rank,
        dtype=dtype,
        uniform_rank=uniform_rank,
        compare=True,
    )
    report.all(exported.warnings)
    report.data(**exported.data())
    report.result(str(exported))


def _save(stored: StoredAdapter, out: Path, dtype: str, report: Report) -> None:
    """Save an adapter as a folder of bishare."""
    from bishare_dsl.cli.files import check_out
    from bishare_dsl.compiler import save_again

    check_out(out)
    report.all(save_again(stored, out, dtype))
    report.data(out=str(out), spec=stored.spec_text)
    report.result(f"saved in {out}")
