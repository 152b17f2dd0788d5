"""``bishare fit``: the adapter of a spec that comes closest to trained LoRAs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from bishare_dsl.cli import options
from bishare_dsl.cli.report import CommandError, Report
from bishare_dsl.diagnostics.codes import analyse as analyse_codes
from bishare_dsl.diagnostics.codes import usage as codes
from bishare_dsl.diagnostics.codes.adapter import OTHER_FAMILY

if TYPE_CHECKING:
    from bishare_dsl.folder.contents import StoredAdapter
    from bishare_dsl.models import Architecture


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
    from bishare_dsl.cli.adapters import adapters_in, bytes_of, named_folders, read_named
    from bishare_dsl.cli.files import check_out
    from bishare_dsl.cli.reading import plan_of, read_spec
    from bishare_dsl.folder.contents import own_file
    from bishare_dsl.folder.files import CONFIG, add_to_library, save_adapter, save_library

    folders = tuple(adapter for folder in folders for adapter in adapters_in(folder))
    named = named_folders(folders)
    settings: Any = {"seed": seed, "dtype": dtype}
    first, model_name, how = None, model, dict[str, Any]()
    if library is not None:
        source = click.get_current_context().get_parameter_source
        if any(source(o) is ParameterSource.COMMANDLINE for o in ("spec", "params", *settings)):
            raise click.UsageError("no --spec, --set, --seed, --dtype: they are for a new library")
        member = _member_of(library, named, force)
        plan, base, seed, place = member.plan, member.plan.base, member.config.seed, out or library
        tensors, text = member.tensors(), member.spec_text
        shared = {name: tensors[name] for name in plan.common}
        how["began"] = member.config
        how["seen"] = check_out(out, CONFIG, force=force) if out is not None else None
    else:
        if spec is None or out is None:
            raise click.UsageError("give --spec and --out, or --library")
        settings["seen"] = check_out(out, CONFIG, force=force)
        read_spec(spec)  # Its errors come before an adapter is read.
        first, base, model_name = read_named(folders[0], model, report)
        resolved = plan_of(spec, base, params, report)
        settings["origin"] = first.config.origin
        plan, text, place, shared = resolved.plan, resolved.text(), out, None
    report.note("fitting ...")
    from bishare_dsl.fit.fit import fit
    from bishare_dsl.fit.pairs import read_pairs

    pairs = read_pairs(_read(report, named, base, model, model_name, first))
    family, values, fitted = fit(plan, pairs, seed=seed, library=shared, watch=report.note)
    before = sum(bytes_of(folder) for folder in named.values())
    report.data(out=str(place), params=plan.params, **fitted.data())
    members = {name: family.tensors(values, name) for name in named}
    name = next(iter(named))
    if library is not None:
        report.all(add_to_library(library, members, out, **how))
        after = sum((place / own_file(name)).stat().st_size for name in named)
    else:
        if family.apart:
            report.all(save_library(place, plan, members, text, **settings))
        else:
            report.all(save_adapter(place, plan, members[name], text, **settings))
        if len(named) > 1 and not family.apart:
            why = "no key names `adapter`, so one adapter was fitted to all"
            report.note(f"{why}; add `adapter` to a key to fit one each")
        after = bytes_of(place)
    report.data(bytes_before=before, bytes_after=after)
    report.result(f"{fitted}\n\nbytes: {before:,} before, {after:,} after")
    report.all(fitted.problems())
    report.note(f"saved in {place}" + f": `{place}#{name}`" * (library is not None or family.apart))


def _member_of(library: Path, named: Mapping[str, Path], force: bool) -> StoredAdapter:
    """Read an adapter of a library that others are added to, after a check of their names.

    Raises:
        CommandError: the folder is no library, or has an adapter of such a name (BS901).
    """
    from bishare_dsl.folder.files import check_members, names_in, read_adapter

    if not (names_there := names_in(library)):
        place = Path(str(library).partition("#")[0])
        meant = f"`{place}` is one" if names_in(place) else "`--spec` and `--out` start one"
        what = f"`{library}` is no library: {meant}"
        raise CommandError(codes.WRONG_USAGE(what=what))
    check_members(named)
    member = read_adapter(f"{library}#{names_there[0]}")
    there = member.config.adapters or {}  # Those that `add_to_library` compares with.
    if (twice := next((name for name in named if name in there), None)) and not force:
        what = f"`{library}` has an adapter `{twice}`"
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

    here, bases, whole = base.model_id or base.name, dict[str, None](), dict[str, str]()
    for name, folder in report.bar(named.items(), "reading", hidden=len(named) == 1):
        stored, first = first or read_adapter_for(folder, base, report, model_name), None
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
