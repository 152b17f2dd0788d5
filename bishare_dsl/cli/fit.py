"""``bishare fit``: the adapter of a spec that comes closest to trained LoRAs."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from bishare_dsl.cli import options
from bishare_dsl.cli.report import CommandError, Report
from bishare_dsl.diagnostics import AdapterError
from bishare_dsl.diagnostics.codes import analyse as analyse_codes
from bishare_dsl.diagnostics.codes import usage as codes
from bishare_dsl.diagnostics.codes.adapter import OTHER_FAMILY

if TYPE_CHECKING:
    from bishare_dsl.adapter.contents import StoredAdapter
    from bishare_dsl.compiler import ResolvedSpec
    from bishare_dsl.fit.report import FitReport
    from bishare_dsl.models import Architecture


class _Percent(click.ParamType[float]):
    """``5%`` or ``0.05``, as a part of one."""

    name = "percent"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> float:
        text = str(value).strip()
        try:
            part = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            part = -1.0
        if not 0 < part < 1:
            self.fail(f"`{value}` is no part of the updates: write `5%` or `0.05`", param, context)
        return part


_PERCENT = _Percent()


@click.command(
    "fit",
    epilog=options.examples(
        "bishare fit my-lora --spec bishare_ke --set size=64 --out smaller",
        "bishare fit peft-lora --spec my.share --out smaller --json | jq .error",
        "bishare fit tasks/* --spec family.share --out library    # then library#NAME is an adapter",
        "bishare fit tasks/* --spec family.share --out library --tolerance 5% --solve r",
        "bishare fit new-customer --library library    # adds library#new-customer",
    ),
)
@options.folders()
@click.option(
    "--spec",
    type=click.Path(allow_dash=True),
    metavar="SPEC",
    help="The spec to fit.",
)
@click.option(
    "--library",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Add the adapters to this library; its shared tensors do not change.",
)
@options.model(required=False)
@options.values
@options.out("The folder to write; by default the --library itself.", required=False)
@click.option(
    "--sweeps",
    type=click.IntRange(min=1),
    default=30,
    metavar="N",
    help="Maximum number of passes over all tensors; by default 30.",
)
@click.option(
    "--warn-above",
    type=_PERCENT,
    default="10%",
    metavar="PERCENT",
    help="Warn if the relative error of an adapter is larger; by default 10%.",
)
@click.option(
    "--tolerance",
    type=_PERCENT,
    metavar="PERCENT",
    help="Find the smallest value of a param that keeps every adapter's relative error below this.",
)
@click.option(
    "--solve",
    "name",
    metavar="NAME",
    help="The param that --tolerance changes; not needed if the spec has only one.",
)
@options.seed
@options.stored_dtype
@options.force
@click.pass_obj
def command(
    report: Report,
    /,
    folders: tuple[Path, ...],
    spec: str | None,
    library: Path | None,
    model: str | None,
    params: dict[str, int | float | str],
    out: Path | None,
    sweeps: int,
    warn_above: float,
    tolerance: float | None,
    name: str | None,
    seed: int,
    dtype: str,
    force: bool,
) -> None:
    """Find the adapter of a spec whose updates come closest to those of trained LoRAs.

    DIR is an adapter of bishare, a LoRA that PEFT has saved, a library, or a folder of these. The report has
    the relative error by layer, kind and adapter, and the bytes before and after. By default the base is the
    model that DIR names. Its shapes are enough.

    Several adapters become a library: one folder that stores the tensors they share once. A tensor whose key
    names `adapter` is private to each.

    With --library the shared tensors do not change, and each DIR is added to the library.
    """
    from bishare_dsl.adapter.files import CONFIG
    from bishare_dsl.cli.files import check_out
    from bishare_dsl.cli.reading import plan_of, read_adapter_for
    from bishare_dsl.compiler import make_plan

    folders = tuple(adapter for folder in folders for adapter in _adapters_in(folder))
    named = named_folders(folders)
    if library is not None:
        source = click.get_current_context().get_parameter_source
        new = ("spec", "params", "tolerance", "name", "seed", "dtype")
        if any(source(option) is ParameterSource.COMMANDLINE for option in new):
            what = "--spec, --set, --tolerance, --solve, --seed and --dtype"
            raise click.UsageError(f"{what} are for a new library")
        _project(report, library, named, out, model, sweeps, warn_above, force)
        return
    if spec is None or out is None:
        raise click.UsageError("give --spec and --out, or --library")
    check_out(out, CONFIG, force=force)
    base, model_name = base_of(folders[0], model)
    resolved = plan_of(spec, base, params, report)
    if name is not None and tolerance is None:
        raise click.UsageError("--solve goes with --tolerance")
    param, most = (None, 0) if tolerance is None else _param(resolved, name)
    first = read_adapter_for(folders[0], base, report, model_name)
    report.note("fitting ...")
    from bishare_dsl.adapter.files import save_adapter, save_library
    from bishare_dsl.fit.fit import fit
    from bishare_dsl.fit.pairs import open_pairs

    read = _read(report, named, base, model, model_name, {folders[0]: first})
    how: Any = {"seed": seed, "sweeps": sweeps, "dtype": dtype, "watch": partial(_tell, report)}
    with open_pairs(read) as pairs:
        if tolerance is None:
            family, values, fitted = fit(resolved.plan, pairs, **how)
        else:

            def attempt(value: int) -> tuple[ResolvedSpec, tuple[Any, Any, FitReport]]:
                tried = make_plan(resolved.spec, base, {str(param): value}, resolved.where)
                report.note(f"{param} = {value}:")
                return tried, fit(tried.plan, pairs, **how)

            resolved, (family, values, fitted) = _smallest(attempt, str(param), most, tolerance)
    before = sum(_bytes(folder) for folder in named.values())
    report.data(out=str(out), params=resolved.plan.params, **fitted.data())
    saving: Any = {
        "seed": seed,
        "base_revision": first.config.base_revision,
        "dtype": dtype,
    }
    if family.apart:
        members = {name: family.tensors(values, name) for name in named}
        report.all(save_library(out, resolved.plan, members, resolved.text(), **saving))
    else:
        tensors = family.tensors(values, next(iter(named)))
        report.all(save_adapter(out, resolved.plan, tensors, resolved.text(), **saving))
        if len(named) > 1:
            report.note(
                "nothing in the spec tells the adapters apart: this is one, nearest to all of them; "
                "`adapter` in a key gives each its own"
            )
    _judge(report, fitted, before, _bytes(out), warn_above)
    report.note(f"saved in {out}" + (f": `{out}#{next(iter(named))}`, ..." if family.apart else ""))


def _project(
    report: Report,
    library: Path,
    named: Mapping[str, Path],
    out: Path | None,
    model: str | None,
    sweeps: int,
    warn_above: float,
    force: bool,
) -> None:
    """Add adapters to a library, by the private tensors that approximate them best."""
    from bishare_dsl.adapter.files import (
        CONFIG,
        add_to_library,
        check_members,
        names_in,
        read_adapter,
    )
    from bishare_dsl.cli.files import check_out

    names_there = names_in(library)
    if not names_there:
        read_adapter(library)  # Says why it is none.
        what = f"`{library}` is one adapter and no library"
        raise CommandError(codes.WRONG_USAGE(what=what, help="start one with `--spec` and `--out`"))
    check_members(named)
    if out is not None:
        check_out(out, CONFIG, force=force)
    if (twice := next((name for name in named if name in names_there), None)) and not force:
        what = f"`{library}` has an adapter `{twice}`"
        help = "rename the folder, or replace the adapter with `--force`"
        raise CommandError(codes.WRONG_USAGE(what=what, help=help))
    member = read_adapter(f"{library}#{names_there[0]}")
    if not member.config.spec:
        what = (
            f"`{library}` has no spec that tells what its adapters share: another program wrote it"
        )
        help = f"start a library with `--spec` and `--out`, also from `{library}#{names_there[0]}`"
        raise CommandError(codes.WRONG_USAGE(what=what, help=help))
    plan, base = member.plan, member.plan.base
    report.note("fitting ...")
    from bishare_dsl.fit.fit import fit
    from bishare_dsl.fit.pairs import open_pairs

    tensors = member.tensors()
    how: Any = {"seed": member.config.seed, "sweeps": sweeps, "dtype": member.config.rounded}
    how |= {"library": {n: tensors[n] for n in plan.common}, "watch": partial(_tell, report)}
    with open_pairs(_read(report, named, base, model, model, {})) as pairs:
        family, values, fitted = fit(plan, pairs, **how)
    members = {name: family.tensors(values, name) for name in named}
    report.all(add_to_library(library, members, out))
    place = out or library
    report.data(out=str(place), params=plan.params, **fitted.data())
    before = sum(_bytes(folder) for folder in named.values())
    after = sum(_own_bytes(place, name) for name in named)
    _judge(report, fitted, before, after, warn_above)
    report.note(f"added to {place}: `{place}#{next(iter(named))}`" + ", ..." * (len(named) > 1))


def _read(
    report: Report,
    named: Mapping[str, Path],
    base: Architecture,
    model: str | None,
    model_name: str | None,
    before: Mapping[Path, StoredAdapter],
) -> Iterator[tuple[str, StoredAdapter]]:
    """Read adapters one by one; ``before`` has those that were read. Warn of what a fit leaves out, and, if
    the command names no model, of bases with other names.
    """
    from bishare_dsl.adapter.files import is_peft
    from bishare_dsl.cli.reading import read_adapter_for
    from bishare_dsl.export.peft_config import read_config

    here, bases, whole = base.model_id or base.name, dict[str, None](), dict[str, str]()
    for name, folder in report.bar(named.items(), "reading", hidden=len(named) == 1):
        stored = before.get(folder) or read_adapter_for(folder, base, report, model_name)
        if stored.plan.trained:
            whole[name] = stored.plan.trained[0].parameter
        there = stored.config.base_model
        if is_peft(folder):
            there = read_config(folder).base_model_name_or_path
        if model is None and there and Path(there).name != Path(here).name:
            bases[there] = None
        yield name, stored
    for name, parameter in [*whole.items()][:1]:
        more = f" and {len(whole) - 1} more" if len(whole) > 1 else ""
        report.problem(analyse_codes.LEFT_OUT(names=f"`{name}`{more}", parameter=parameter))
    help = f"if these are one model, give it: `--model {shlex.quote(here)}`"
    for there in bases:
        report.problem(OTHER_FAMILY(base=there, model=here, help=help))


def _judge(report: Report, fitted: FitReport, before: int, after: int, warn_above: float) -> None:
    """Report the errors and the bytes of a fit, and warn of adapters that are far from what was given."""
    report.data(bytes_before=before, bytes_after=after)
    report.result(f"{fitted}\n\n{_saved(before, after)}")
    far = [(adapter, e) for adapter, e in fitted.adapters.items() if e > warn_above]
    if far:
        adapter, error = max(far, key=lambda pair: pair[1])
        what = f"{len(far):,} adapters are up to" if len(far) > 1 else f"`{adapter}` is"
        text = f"{error:.1%}" if math.isfinite(error) else "infinitely far"
        report.problem(analyse_codes.FAR_FROM_GIVEN(what=what, error=text, limit=warn_above))


def _tell(report: Report, sweep: int, error: float) -> None:
    report.note(f"sweep {sweep}: relative error {100 * error:.3g}%")


def _adapters_in(folder: Path) -> list[Path]:
    """Return the adapter that a word names, or all of those in a folder or in a library."""
    from bishare_dsl.adapter.files import names_in
    from bishare_dsl.adapter.inventory import find_adapters

    places = find_adapters(folder) or [folder]
    return [
        adapter
        for place in places
        for adapter in ([Path(f"{place}#{name}") for name in names_in(place)] or [place])
    ]


def _param(resolved: ResolvedSpec, name: str | None) -> tuple[str, int]:
    """Return the param that a tolerance changes, and the largest value to try: as the spec sets it.

    Raises:
        CommandError: there is none, or there are several and none is named (BS901).
    """
    ranks = {n: v for n, v in resolved.plan.params.items() if isinstance(v, int) and v > 0}
    if name in ranks:
        return str(name), ranks[str(name)]
    if name is None and len(ranks) == 1:
        return next(iter(ranks.items()))
    listed = ", ".join(f"`--solve {param}`" for param in ranks)
    what = (
        "--tolerance needs the param to change"
        if name is None
        else f"`{name}` is no param of the spec whose value is a whole number"
    )
    help = f"give {listed}" if ranks else "declare the rank as a param: `param r = 64`"
    raise CommandError(codes.WRONG_USAGE(what=what, help=help))


def _smallest(
    attempt: Callable[[int], tuple[ResolvedSpec, tuple[Any, Any, FitReport]]],
    param: str,
    most: int,
    tolerance: float,
) -> tuple[ResolvedSpec, tuple[Any, Any, FitReport]]:
    """Return the fit with the smallest value of a param that keeps each adapter's error within a tolerance:
    1, 2, 4, ... first, and then by halving.

    Raises:
        AdapterError: not even the largest value does (BS852).
    """

    def worst(attempted: tuple[ResolvedSpec, tuple[Any, Any, FitReport]]) -> float:
        return max(attempted[1][2].adapters.values(), default=0.0)

    least, value, best = 0, 1, None
    while best is None:
        fitted = attempt(value)
        if worst(fitted) <= tolerance:
            best = fitted
        elif value == most:
            raise AdapterError(
                analyse_codes.OUT_OF_REACH(
                    param=param, most=most, limit=tolerance, error=worst(fitted)
                )
            )
        else:
            least, value = value, min(2 * value, most)
    while value - least > 1:
        middle = (least + value) // 2
        fitted = attempt(middle)
        if worst(fitted) <= tolerance:
            value, best = middle, fitted
        else:
            least = middle
    return best


def _bytes(folder: Path) -> int:
    """Return the bytes of an adapter's files: of a library those of all its adapters."""
    from bishare_dsl.adapter.inventory import list_adapters

    return sum(entry.bytes for entry in list_adapters(folder))


def _own_bytes(library: Path, name: str) -> int:
    """Return the bytes of the private tensors of an adapter of a library."""
    from bishare_dsl.adapter.contents import own_file

    return (library / own_file(name)).stat().st_size


def _saved(before: int, after: int) -> str:
    from bishare_dsl.show.rows import mib

    part = f", {after / before:.1%}" if before else ""
    return f"bytes: {before:,} ({mib(before)} MiB) before, {after:,} ({mib(after)} MiB) after{part}"


def named_folders(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the adapters by their names: those of their folders, or that they have in a library.

    Raises:
        CommandError: one has the name of another, or one that cannot be that of a file.
    """
    from bishare_dsl.adapter.files import check_members, place_of
    from bishare_dsl.reading import real_path

    named: dict[str, Path] = {}
    for folder in folders:
        place, member = place_of(folder)
        name = member or real_path(place).name
        if name in named:
            what = (
                f"`{named[name]}` and `{folder}` have one name: an adapter is called as its folder"
            )
            raise CommandError(codes.WRONG_USAGE(what=what))
        if len(folders) > 1:
            check_members([name])
        named[name] = folder
    return named


def base_of(folder: Path, model: str | None) -> tuple[Architecture, str]:
    """Return the shapes and the name of the base: ``model``, or else the model that the adapter names."""
    from bishare_dsl.adapter.files import is_peft, read_adapter
    from bishare_dsl.hub import adapter_folder
    from bishare_dsl.models import architecture_of

    folder = adapter_folder(folder)
    if model is None and not is_peft(folder):
        plan = read_adapter(folder).plan
        return plan.base, plan.base.model_id or plan.base.name
    name = base_name(folder, model)
    return architecture_of(name), name


def base_name(folder: Path, model: str | None) -> str:
    """Return ``model``, or else the name of the base in the config of a LoRA.

    Raises:
        CommandError: neither the LoRA nor the command line names one (BS901).
    """
    from bishare_dsl.export.peft_config import read_config

    name = model or read_config(folder).base_model_name_or_path
    if name is None:
        raise CommandError(codes.WRONG_USAGE(what="the LoRA names no base: give --model"))
    return name
