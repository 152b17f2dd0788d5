"""``bishare merge``: an adapter added to its base's weights."""

from __future__ import annotations

from pathlib import Path

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.files import check_out
from bishare_dsl.cli.report import Report
from bishare_dsl.writing import new_folder


@click.command(
    "merge",
    epilog=options.examples(
        "bishare merge my-adapter --model ./my-checkpoint --out merged",
        "bishare merge my-adapter --model model.gguf --out merged --dtype bfloat16",
    ),
)
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@options.model(weights=True)
@options.out("The folder to write.")
@options.dtype
@click.option(
    "--dequantize", is_flag=True, help="Make quantised layers dense; else they are refused."
)
@click.pass_obj
def command(
    report: Report,
    folder: Path,
    model: str,
    out: Path,
    dtype: str | None,
    dequantize: bool,
) -> None:
    """Add an adapter to its base's weights, and save the result as a checkpoint that needs no bishare.

    Sums are made in float32; by how much the weights are rounded is reported.
    """
    from dataclasses import asdict

    from bishare_dsl.cli.reading import read_adapter_for
    from bishare_dsl.export.effective import check_linear

    check_out(out)
    # What does not fit is found before the weights are loaded.
    stored = read_adapter_for(folder, model, report)
    check_linear(stored.plan.terms, "merge the adapter")
    report.note(f"loading {model} ...")
    from bishare_dsl.adapter.handle import Handle
    from bishare_dsl.compiler import install
    from bishare_dsl.models import load_model

    base, tokenizer = load_model(model, dtype=dtype, causal=False)
    report.note("merging ...")
    install(base, stored)
    handle = base.bishare
    assert isinstance(handle, Handle)
    merged = handle.merge(keep_base=False, dequantize=dequantize)
    plain = handle.merge_and_unload(dequantize=dequantize)
    report.note("saving ...")
    with new_folder(out.resolve()) as new:
        plain.save_pretrained(new)
        if tokenizer is not None:
            tokenizer.save_pretrained(new)
    report.data(out=str(out), **asdict(merged))
    report.result(str(merged))
    report.note(f"saved in {out}")
