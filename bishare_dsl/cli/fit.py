"""``bishare fit``: the adapter of a spec that comes closest to trained LoRAs."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.report import CommandError, Report
from bishare_dsl.diagnostics.codes import fit as fit_codes
from bishare_dsl.diagnostics.codes import usage as codes
from bishare_dsl.diagnostics.codes.adapter import OTHER_FAMILY

if TYPE_CHECKING:
    import torch

    from bishare_dsl.fit.fit import Fit
    from bishare_dsl.folder.contents import StoredAdapter
    from bishare_dsl.models import Architecture
    from bishare_dsl.plan import Plan

_WARN_ABOVE = 0.1
"""The relative error of an adapter that is warned of."""


@click.command(
    "fit",
    epilog=options.examples(
        "bishare fit my-lora --spec bishare_ke --set size=64 --out smaller",
        "bishare fit peft-lora --spec my.share --out smaller --json | jq .error",
        "bishare fit tasks/* --spec family.share --out library    # then library#NAME is an adapter",
        "bishare fit new-customer --library library    # adds library#new-customer",
    ),
)
@options.folders()
@click.option("--spec", type=click.Path(allow_dash=True), metavar="SPEC", help="The spec to fit.")
@click.option(
    "--library",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Add the adapters to this library; its shared tensors do not change.",
)
@options.model(required=False)
@options.values
@options.out("The folder to write; by default the --library itself.", required=False)
@options.force
@click.pass_obj
def command(
    report: Report,
    /,
    folders: tuple[Path, ...],
    spec: str | None,
    library: Path | None,
    model: str | None,
    params: dict[str, options.Value],
    out: Path | None,
    force: bool,
) -> None:
    """Find the adapter of a spec whose updates come closest to those of trained LoRAs (experimental).

    DIR is an adapter of bishare, a LoRA that PEFT has saved, a library, or a folder of these. The table has
    the relative error of each. By default the base is the model that DIR names. Its shapes are enough.

    Several adapters become a library: one folder that stores the tensors they share once. A tensor whose key
    names `adapter` is private to each.

    With --library the shared tensors do not change, and each DIR is added to the library.
    """
    from bishare_dsl.cli.adapters import adapters_in, named_folders

    named = named_folders([adapter for folder in folders for adapter in adapters_in(folder)])
    if library is not None:
        if spec is not None or params:
            raise click.UsageError("no --spec, --set: they are for a new library")
        _add(report, named, library, model, out, force)
    elif spec is None or out is None:
        raise click.UsageError("give --spec and --out, or --library")
    else:
        _start(report, named, spec, params, model, out, force)


def _start(
    report: Report,
    named: Mapping[str, Path],
    spec: str,
    params: dict[str, options.Value],
    model: str | None,
    out: Path,
    force: bool,
) -> None:
    """Fit a spec to adapters, and save an adapter, or a library of several."""
    from bishare_dsl.cli.adapters import read_named
    from bishare_dsl.cli.files import check_out
    from bishare_dsl.cli.reading import plan_of, read_spec
    from bishare_dsl.folder.files import save_adapter, save_library

    seen = check_out(out, "fit", force=force)
    read_spec(spec)  # Its errors come before an adapter is read.
    name, folder = next(iter(named.items()))
    first, base, model_name = read_named(folder, model, report)
    resolved = plan_of(spec, base, params, report)
    plan = resolved.plan
    stored = _read(report, named, base, model, model_name, first)
    fitted = _fit(report, plan, stored, out, seed=0)
    text = resolved.text()
    origin = first.config.origin
    if fitted.has_private:
        report.all(
            save_library(
                out, plan, fitted.tensors, text, seed=0, seen=seen, origin=origin, command="fit"
            )
        )
        report.note(f"saved in {out}: `{out}#{name}`")
        return
    tensors = fitted.tensors[name]
    report.all(
        save_adapter(out, plan, tensors, text, seed=0, seen=seen, origin=origin, command="fit")
    )
    if len(named) > 1:
        why = "no key names `adapter`, so one adapter was fitted to all"
        report.note(f"{why}; add `adapter` to a key to fit one each")
    report.note(f"saved in {out}")


def _add(
    report: Report,
    named: Mapping[str, Path],
    library: Path,
    model: str | None,
    out: Path | None,
    force: bool,
) -> None:
    """Fit the private tensors of a library to adapters, and add them to it or to a copy."""
    from bishare_dsl.cli.files import check_out
    from bishare_dsl.folder.files import add_to_library
    from bishare_dsl.writing import ANY

    member = _member_of(library, named, force)
    seen = ANY if out is None else check_out(out, "fit", force=force)
    plan = member.plan
    tensors = member.tensors()
    shared = {name: tensors[name] for name in plan.common}
    place = out or library
    stored = _read(report, named, plan.base, model, model, None)
    fitted = _fit(report, plan, stored, place, seed=member.config.seed, library=shared)
    began = member.config
    report.all(add_to_library(library, fitted.tensors, out, began=began, seen=seen, command="fit"))
    report.note(f"saved in {place}: `{place}#{next(iter(named))}`")


def _fit(
    report: Report,
    plan: Plan,
    stored: Iterator[tuple[str, StoredAdapter]],
    place: Path,
    *,
    seed: int,
    library: Mapping[str, torch.Tensor] | None = None,
) -> Fit:
    """Fit a plan to adapters, report their errors, and warn of large ones."""
    report.note("fitting ...")
    from bishare_dsl.fit.fit import fit
    from bishare_dsl.fit.pairs import read_pairs
    from bishare_dsl.show.table import Table

    fitted = fit(plan, read_pairs(stored), seed=seed, library=library, watch=report.note)
    report.data(
        out=str(place),
        params=plan.params,
        error=_finite(fitted.error),
        adapters={name: _finite(error) for name, error in fitted.errors.items()},
    )
    worst = sorted(fitted.errors.items(), key=lambda item: -item[1])
    report.tables(Table(["adapter", "relative error"], [[n, _percent(e)] for n, e in worst]))
    name, error = worst[0]
    far = [error for error in fitted.errors.values() if error > _WARN_ABOVE]
    if far:
        what = f"{len(far):,} adapters are up to" if len(far) > 1 else f"`{name}` is"
        report.problem(
            fit_codes.FAR_FROM_GIVEN(what=what, error=_percent(error), limit=_WARN_ABOVE)
        )
    return fitted


def _finite(error: float) -> float | None:
    """Return an error that JSON has a number for."""
    return error if math.isfinite(error) else None


def _percent(error: float) -> str:
    return f"{error:.2%}" if math.isfinite(error) else "infinitely far"


def _member_of(library: Path, named: Mapping[str, Path], force: bool) -> StoredAdapter:
    """Read an adapter of a library that others are added to, after a check of their names.

    Raises:
        CommandError: the folder is no library, or has an adapter of such a name (BS901).
    """
    from bishare_dsl.folder.files import check_members, names_in, read_adapter

    members = names_in(library)
    if not members:
        place = Path(str(library).partition("#")[0])
        meant = f"`{place}` is one" if names_in(place) else "`--spec` and `--out` start one"
        what = f"`{library}` is no library: {meant}"
        raise CommandError(codes.WRONG_USAGE(what=what))
    check_members(named)
    member = read_adapter(f"{library}#{members[0]}")
    adapters = member.config.adapters or {}  # Those that `add_to_library` compares with.
    twice = [name for name in named if name in adapters]
    if twice and not force:
        what = f"`{library}` has an adapter `{twice[0]}`"
        help = "rename the folder, or replace the adapter with `--force`"
        raise CommandError(codes.WRONG_USAGE(what=what, help=help))
    return member


def _read(
    report: Report,
    named: Mapping[str, Path],
    base: Architecture,
    model: str | None,
    model_name: str | None,
    first: StoredAdapter | None,
) -> Iterator[tuple[str, StoredAdapter]]:
    """Read adapters one by one; ``first`` has been read already, if it is given.

    Warn of what a fit leaves out, and, if the command names no model, of bases with other names.
    """
    from bishare_dsl.cli.reading import read_adapter_for
    from bishare_dsl.convert.peft_config import read_config
    from bishare_dsl.folder.files import is_peft

    base_name = base.model_id or base.name
    other_bases: dict[str, None] = {}
    trained_in_full: dict[str, str] = {}
    for name, folder in report.bar(named.items(), "reading", hidden=len(named) == 1):
        stored = first or read_adapter_for(folder, base, report, model_name)
        first = None
        if stored.plan.trained:
            trained_in_full[name] = stored.plan.trained[0].parameter
        named_base = stored.config.base_model
        if is_peft(folder):
            named_base = read_config(folder).base_model_name_or_path
        if model is None and named_base and Path(named_base).name != Path(base_name).name:
            other_bases[named_base] = None
        yield name, stored
    if trained_in_full:
        name, parameter = next(iter(trained_in_full.items()))
        others = len(trained_in_full) - 1
        names = f"`{name}` and {others} more" if others else f"`{name}`"
        report.problem(fit_codes.LEFT_OUT(names=names, parameter=parameter))
    help = f"if these are one model, give it: `--model {shlex.quote(base_name)}`"
    for other in other_bases:
        report.problem(OTHER_FAMILY(base=other, model=base_name, help=help))
