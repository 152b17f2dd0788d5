"""``bishare fit``: the adapter of a spec that comes nearest to trained LoRAs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.report import CommandError, Report
from bishare_dsl.diagnostics.codes import usage as codes

if TYPE_CHECKING:
    from bishare_dsl.models import Architecture


@click.command(
    "fit",
    epilog=options.examples(
        "bishare fit my-lora --spec bishare_ke --set size=64 --out smaller",
        "bishare fit peft-lora --spec my.share --out smaller --json | jq .error",
        "bishare fit my-lora --spec my.share --out nearer --model ./my-checkpoint --data rows.jsonl",
    ),
)
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--spec",
    required=True,
    type=click.Path(allow_dash=True),
    metavar="SPEC",
    help="What is fitted.",
)
@options.model(required=False)
@options.values
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The folder to write.",
)
@click.option(
    "--sweeps",
    type=click.IntRange(min=1),
    default=30,
    metavar="N",
    help="How often all tensors are gone through, at most; by default 30.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    metavar="N",
    help="Draws what is begun with, and what is frozen; by default 0.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    help="Of the tensors in the file; loaded, they are float32 in any case.",
)
@click.option(
    "--data",
    metavar="FILE",
    help="Rows, as for `bishare train`: then train a few steps towards what the LoRA makes of them.",
)
@click.option(
    "--steps", type=click.IntRange(min=1), metavar="N", help="With --data; by default 100."
)
@click.option(
    "--learning_rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="X",
    help="With --data; by default 1e-4.",
)
@options.device
@options.force
@options.allow_use
@options.as_json
@options.quiet
@click.pass_obj
def command(
    report: Report,
    /,
    folder: Path,
    spec: str,
    model: str | None,
    params: dict[str, int | float | str],
    out: Path,
    sweeps: int,
    seed: int,
    dtype: str,
    data: str | None,
    steps: int | None,
    learning_rate: float | None,
    device: str | None,
    force: bool,
) -> None:
    """Find the adapter of a spec whose updates come nearest to those of a trained LoRA.

    DIR is an adapter of bishare, or a LoRA that PEFT has saved. The tensors are found by alternating least
    squares, from the small factors alone. How far each module's update is from the given one is reported.
    The base is the one that DIR names, unless another one is given; without --data its shapes are enough.
    """
    from bishare_dsl.adapter.files import CONFIG
    from bishare_dsl.cli.files import check_out
    from bishare_dsl.cli.reading import adapter_for, plan_of
    from bishare_dsl.models.load import require_weights

    check_out(out, force=force, mark=CONFIG)
    if data is None and (steps or learning_rate or device):
        raise CommandError(codes.WRONG_USAGE(what="how to train without data: give --data"))
    base, name = _base(folder, model)
    if data is not None:
        require_weights(name)
    made = plan_of(spec, base, params, report)
    stored = adapter_for(folder, base, report)
    report.note("fitting ...")
    import torch

    from bishare_dsl.adapter.files import save_adapter
    from bishare_dsl.fit.fit import fit, measured
    from bishare_dsl.fit.given import given

    def watch(sweep: int, error: float) -> None:
        report.note(f"sweep {sweep}: relative error {100 * error:.3g}%")

    with given([(folder.name, stored)]) as found:
        kind = getattr(torch, dtype)
        family, values, fitted = fit(
            made.plan, found, seed=seed, sweeps=sweeps, dtype=kind, watch=watch
        )
        tensors = family.tensors(values, folder.name)
        if data is not None:
            from bishare_dsl.cli.updates import model_to_look_at
            from bishare_dsl.fit.distil import distil, examples_of

            with model_to_look_at(name, None, device, report) as (live, tokenizer):
                examples, collator = examples_of(data, tokenizer)
                report.note("training towards what the LoRA makes of the data ...")
                distilled = distil(
                    live,
                    stored,
                    made,
                    tensors,
                    examples,
                    collator,
                    steps=steps or 100,
                    rate=learning_rate or 1e-4,
                    seed=seed,
                )
            tensors = distilled.tensors
            report.data(distilled={"before": distilled.before, "after": distilled.after})
            report.note(str(distilled))
            fitted = measured(fitted, family, found, tensors, kind)
    report.data(out=str(out), **fitted.data())
    report.all(
        save_adapter(
            out,
            made.plan,
            tensors,
            made.text(),
            seed=seed,
            base_revision=stored.config.base_revision,
            dtype="bfloat16" if dtype == "bfloat16" else None,
        )
    )
    report.result(str(fitted))
    report.note(f"saved in {out}")


def _base(folder: Path, model: str | None) -> tuple[Architecture, str]:
    """Give the shapes and the name of the base: the one that is named, or that the adapter names."""
    from bishare_dsl.adapter.files import is_peft, read_adapter
    from bishare_dsl.export.from_peft import base_of
    from bishare_dsl.hub import adapter_folder
    from bishare_dsl.models import architecture_of

    folder = adapter_folder(folder)
    if model is None and not is_peft(folder):
        plan = read_adapter(folder).plan
        return plan.base, plan.base.model_id or plan.base.name
    name = model or base_of(folder)
    if name is None:
        raise CommandError(codes.WRONG_USAGE(what="the LoRA names no base: give --model"))
    return architecture_of(name), name
