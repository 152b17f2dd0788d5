"""``bishare fit``: the adapter of a spec that comes nearest to trained LoRAs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
        "bishare fit tasks/* --spec family.share --out library    # then library#NAME is an adapter",
    ),
)
@click.argument(
    "folders", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="DIR..."
)
@click.option(
    "--spec",
    required=True,
    type=click.Path(allow_dash=True),
    metavar="SPEC",
    help="What is fitted.",
)
@options.model(required=False)
@options.values
@options.out("The folder to write.")
@click.option(
    "--sweeps",
    type=click.IntRange(min=1),
    default=30,
    metavar="N",
    help="How often all tensors are gone through, at most; by default 30.",
)
@options.seed
@options.stored_dtype
@options.force
@click.pass_obj
def command(
    report: Report,
    /,
    folders: tuple[Path, ...],
    spec: str,
    model: str | None,
    params: dict[str, int | float | str],
    out: Path,
    sweeps: int,
    seed: int,
    dtype: str,
    force: bool,
) -> None:
    """Find the adapter of a spec whose updates come nearest to those of a trained LoRA.

    DIR is an adapter of bishare, or a LoRA that PEFT has saved. The tensors are found by alternating least
    squares, from the small factors alone. How far each module's update is from the given one is reported.
    The base is the one that DIR names, unless another one is given; its shapes are enough.

    Several DIRs become a library: one folder, in which all have one tensor for each pool whose key does not
    name `adapter`, and each adapter has the others for itself.
    """
    from bishare_dsl.adapter.files import CONFIG
    from bishare_dsl.cli.files import check_out
    from bishare_dsl.cli.reading import plan_of, read_adapter_for

    check_out(out, CONFIG, force=force)
    named = _named(folders)
    base, model_name = base_of(folders[0], model)
    made = plan_of(spec, base, params, report)
    first = read_adapter_for(folders[0], base, report, model_name)
    report.note("fitting ...")
    import torch

    from bishare_dsl.adapter.files import save_adapter, save_library
    from bishare_dsl.fit.fit import fit
    from bishare_dsl.fit.pairs import open_pairs

    def watch(sweep: int, error: float) -> None:
        report.note(f"sweep {sweep}: relative error {100 * error:.3g}%")

    read = (
        (
            name,
            first if folder == folders[0] else read_adapter_for(folder, base, report, model_name),
        )
        for name, folder in named.items()
    )
    with open_pairs(read) as found:
        kind = getattr(torch, dtype)
        family, values, fitted = fit(
            made.plan, found, seed=seed, sweeps=sweeps, dtype=kind, watch=watch
        )
    report.data(out=str(out), **fitted.data())
    saving: Any = {
        "seed": seed,
        "base_revision": first.config.base_revision,
        "dtype": "bfloat16" if dtype == "bfloat16" else None,
    }
    if family.apart:
        each = {name: family.tensors(values, name) for name in named}
        save_library(out, made.plan, each, made.text(), **saving)
    else:
        tensors = family.tensors(values, next(iter(named)))
        report.all(save_adapter(out, made.plan, tensors, made.text(), **saving))
        if len(named) > 1:
            report.note(
                "nothing in the spec tells the adapters apart: this is one, nearest to all of them; "
                "`adapter` in a key gives each its own"
            )
    report.result(str(fitted))
    report.note(f"saved in {out}" + (f": `{out}#{next(iter(named))}`, ..." if family.apart else ""))


def _named(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the adapters by their names: those of their folders, or that they have in a library.

    Raises:
        CommandError: one has the name of another, or one that cannot be that of a file.
    """
    from bishare_dsl.adapter.config import NAME
    from bishare_dsl.adapter.files import place_of

    named: dict[str, Path] = {}
    for folder in folders:
        place, member = place_of(folder)
        name = member or place.resolve().name
        if name in named:
            what = (
                f"`{named[name]}` and `{folder}` have one name: an adapter is called as its folder"
            )
            raise CommandError(codes.WRONG_USAGE(what=what))
        if len(folders) > 1 and not re.fullmatch(NAME, name):
            what = (
                f"`{name}` is not a name of an adapter: letters, digits, `_`, `.` and `-` make one"
            )
            raise CommandError(codes.WRONG_USAGE(what=what))
        named[name] = folder
    return named


def base_of(folder: Path, model: str | None) -> tuple[Architecture, str]:
    """Return the shapes and the name of the base: the one that is named, or that the adapter names."""
    from bishare_dsl.adapter.files import is_peft, read_adapter
    from bishare_dsl.export.peft_config import read_config
    from bishare_dsl.hub import adapter_folder
    from bishare_dsl.models import architecture_of

    folder = adapter_folder(folder)
    if model is None and not is_peft(folder):
        plan = read_adapter(folder).plan
        return plan.base, plan.base.model_id or plan.base.name
    name = model or read_config(folder).base_model_name_or_path
    if name is None:
        raise CommandError(codes.WRONG_USAGE(what="the LoRA names no base: give --model"))
    return architecture_of(name), name
