"""``bishare merge``: add an adapter to its base's weights."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.files import check_out, saving
from bishare_dsl.cli.report import CommandError, Report
from bishare_dsl.writing import new_folder


@click.command(
    "merge",
    epilog=options.examples(
        "bishare merge my-adapter --model ./my-checkpoint --out merged",
        "bishare merge my-adapter --model model.gguf --out merged --dtype bfloat16",
        "bishare merge my-adapter --model ./my-checkpoint --out merged --round stochastic",
        "bishare merge my-adapter --model ./my-checkpoint --out merged --into nf4",
    ),
)
@options.folder
@options.model(required=False, weights=True)
@options.out("The folder to write.")
@options.dtype
@click.option("--dequantize", is_flag=True, help="Convert quantised layers to dense layers.")
@options.choice(
    *("--round", "rounding"),
    among=("nearest", "stochastic"),
    default="nearest",
    help="Round weights to the nearest value, or at random so that the average is exact.",
)
@options.seed
@options.choice(
    "--into",
    among=("int8", "nf4"),
    help="Quantise the merged checkpoint with bitsandbytes.",
)
@click.pass_obj
def command(
    report: Report,
    folder: Path,
    model: str | None,
    out: Path,
    dtype: str | None,
    dequantize: bool,
    rounding: str,
    seed: int,
    into: str | None,
) -> None:
    """Add an adapter to its base's weights, and save the result as an ordinary checkpoint.

    By default the base is the model that the adapter names. Sums are computed in float32. The report gives
    the part of the update that survives rounding, by kind of module, and warns below 90%.
    """
    import warnings

    from bishare_dsl.adapter.files import place_of
    from bishare_dsl.cli.adapters import base_name
    from bishare_dsl.cli.reading import read_adapter_for
    from bishare_dsl.diagnostics import BishareWarning
    from bishare_dsl.diagnostics.codes import usage as codes
    from bishare_dsl.hub import adapter_folder
    from bishare_dsl.models.source import resolve

    check_out(out)
    folder = adapter_folder(folder)
    model = base_name(place_of(folder)[0], model)
    source = resolve(model)
    if into and source.kind == "gguf":
        what = "--into quantises checkpoint folders and Hub models, and this is a .gguf file"
        help = "merge into the checkpoint that the .gguf file was made from"
        raise CommandError(codes.WRONG_USAGE(what=what, help=help))
    # Report mismatches before the weights are loaded.
    stored = read_adapter_for(folder, model, report)
    from bishare_dsl.export.effective import check_linear

    check_linear(stored.plan.unscaled, "merge the adapter")
    report.note(f"loading {model} ...")
    from bishare_dsl.adapter.handle import Handle
    from bishare_dsl.models import load_model
    from bishare_dsl.peft.method import install

    base, tokenizer = load_model(model, dtype=dtype, causal=False)
    report.note("merging ...")
    install(base, stored)
    handle = base.bishare
    assert isinstance(handle, Handle)
    plan, tensors = handle.plan, handle.tensors()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BishareWarning)  # The report contains them.
        merged = handle.merge(
            keep_base=False,
            dequantize=dequantize,
            stochastic_seed=seed if rounding == "stochastic" else None,
        )
    plain = handle.merge_and_unload(dequantize=dequantize)
    with saving(out), new_folder(out.resolve()) as new:
        if into:
            from bishare_dsl.adapter.requantise import requantise

            report.note(f"quantising to {into} ...")
            with TemporaryDirectory(dir=new.parent, prefix=".merging-") as scratch:
                plain.save_pretrained(scratch)
                quantised = requantise(Path(scratch), source, into, plan, tensors)
                plain, merged.survival = quantised
        report.note("saving ...")
        plain.save_pretrained(new)
        if tokenizer is not None:
            tokenizer.save_pretrained(new)
    report.all(merged.survival.problems())
    report.data(
        out=str(out),
        modules=merged.modules,
        dequantized=merged.dequantized,
        max_rounding=merged.max_rounding,
        form=merged.survival.form,
        kept=merged.survival.kept,
    )
    report.result(str(merged))
    report.note(f"saved in {out}")
