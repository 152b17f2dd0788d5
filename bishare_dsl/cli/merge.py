"""``bishare merge``: add an adapter to its base's weights."""

from __future__ import annotations

from pathlib import Path

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.files import check_out
from bishare_dsl.cli.report import Report, silence_libraries
from bishare_dsl.writing import new_folder


@click.command(
    "merge",
    epilog=options.examples(
        "bishare merge my-adapter --model ./my-checkpoint --out merged",
        "bishare merge my-adapter --model model.gguf --out merged --dtype bfloat16",
    ),
)
@options.folder
@options.model(required=False, weights=True)
@options.out("The folder to write.")
@options.dtype
@click.option("--dequantize", is_flag=True, help="Convert quantised layers to dense layers.")
@click.pass_obj
def command(
    report: Report, folder: Path, model: str | None, out: Path, dtype: str | None, dequantize: bool
) -> None:
    """Add an adapter to its base's weights, and save the result as an ordinary checkpoint.

    By default the base is the model that the adapter names. Sums are computed in float32. The report gives
    the part of the update that survives rounding, by kind of module, and warns below 90%.
    """
    import warnings

    from bishare_dsl.cli.adapters import read_named
    from bishare_dsl.diagnostics import BishareWarning
    from bishare_dsl.folder.files import writing

    seen = check_out(out)
    # Report mismatches before the weights are loaded.
    stored, _, model = read_named(folder, model, report)
    from bishare_dsl.convert.effective import check_linear

    check_linear(stored.plan.update_terms, "merge the adapter")
    silence_libraries()
    report.note(f"loading {model} ...")
    from bishare_dsl.adapted.handle import Handle
    from bishare_dsl.models import load_model
    from bishare_dsl.peft.method import install

    base, tokenizer = load_model(model, dtype=dtype, causal=False)
    report.note("merging ...")
    install(base, stored)
    handle = base.bishare
    assert isinstance(handle, Handle)
    report.all(handle.base_changes(stored.config))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BishareWarning)  # The report contains them.
        merged = handle.merge(keep_base=False, dequantize=dequantize)
    plain = handle.merge_and_unload(dequantize=dequantize)
    with writing(out), new_folder(out.resolve(), seen=seen) as new:
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
