"""``bishare diff``: compare the updates of two adapters, or of the shares of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.reading import is_adapter
from bishare_dsl.cli.report import CommandError, Report
from bishare_dsl.diagnostics import escaped
from bishare_dsl.diagnostics.codes import usage as codes

if TYPE_CHECKING:
    from bishare_dsl.folder.contents import StoredAdapter
    from bishare_dsl.models.site import Site
    from bishare_dsl.models.weights import Weight
    from bishare_dsl.plan import Plan
    from bishare_dsl.show.table import Table
    from bishare_dsl.updates import Distance, Energy

_FORMS = {
    "modules": "{:,}",
    "norm before": "{:.4g}",
    "norm after": "{:.4g}",
    "relative difference": "{:.2%}",
    "cosine": "{:+.4f}",
}


@click.command(
    "diff",
    epilog=options.examples(
        "bishare diff lib#acme lib#globex",
        "bishare diff my-lora your-lora --model ./my-checkpoint --json",
        "bishare diff my-adapter",
    ),
)
@click.argument("before", metavar="BEFORE")
@click.argument("after", metavar="[AFTER]", required=False)
@options.model(required=False)
@click.pass_obj
def command(report: Report, before: str, after: str | None, model: str | None) -> None:
    """Show how large the updates of two adapters are, and how far apart; or what each share of one adds.

    BEFORE and AFTER are folders, adapters of a library (FOLDER#NAME), or plain LoRAs of PEFT. Updates are
    compared by kind of module, with their relative difference |dW_1 - dW_2| / |dW_1| and their cosine.

    Without AFTER, tables of kinds and of layers show which part of |dW|^2 each share has.
    """
    names = [before] if after is None else [before, after]
    _check_adapters(names)
    if after is None:
        _show_shares(before, model, report)
    else:
        _show_distances(before, after, model, report)


def _check_adapters(names: list[str]) -> None:
    """Check that each name is of an adapter.

    Raises:
        CommandError: one is not (BS901).
    """
    others = [name for name in names if not is_adapter(name)]
    if not others:
        return
    help = "`bishare inspect .` lists adapters and libraries"
    if len(others) > 1:
        help = f"to compare two specs, use `bishare plan {' '.join(names)} --model MODEL`"
    what = f"`{others[0]}` is not the folder of an adapter"
    raise CommandError(codes.WRONG_USAGE(what=what, help=help))


def _show_shares(name: str, model: str | None, report: Report) -> None:
    """Show which part of an adapter's update each share has, by kind and by layer."""
    from bishare_dsl.cli.adapters import read_named
    from bishare_dsl.updates import NO_ENERGY, energies

    adapter, _, _ = read_named(Path(name), model, report)
    plan = adapter.plan
    of_module = energies(plan, adapter.tensors())
    sites = [site for site in plan.sites if site.path in of_module]
    towers = {site.tower for site in sites}

    def layer_of(site: Site) -> str:
        if site.layer is None:
            return "outside of blocks"
        return f"{site.tower} {site.layer}" if len(towers) > 1 else str(site.layer)

    kinds = _grouped(sites, of_module, lambda site: site.kind)
    layers = _grouped(sites, of_module, layer_of)
    whole = sum(of_module.values(), NO_ENERGY)
    report.data(
        adapter=name,
        spec=plan.spec,
        norm=whole.together**0.5,
        all=_energy_data(whole),
        kinds={kind: _energy_data(energy) for kind, energy in kinds.items()},
        layers={layer: _energy_data(energy) for layer, energy in layers.items()},
        modules={path: _energy_data(energy) for path, energy in of_module.items()},
    )
    notes: list[str] = []
    if plan.has_magnitudes:
        notes.append("magnitudes are left out: they scale the base's weights")
    if plan.trained:
        notes.append(f"left out: {len(plan.trained):,} parameters trained in full")
    if not whole.together:
        state = "are zero" if of_module else "are no matrices"
        head = escaped(f"{name}: the updates of {plan.spec} {state}")
        report.tables(head, "\n".join(notes))
        return
    if len(whole.shares) > 1:
        notes.insert(0, "shares overlap where they meet, so parts may not add up to 100%")
    head = escaped(f"{name}: |dW| = {whole.together**0.5:.4g} of {plan.spec}; parts of |dW|^2")
    by_kind = _share_table("kind", kinds, whole)
    by_layer = _share_table("layer", layers, whole)
    report.tables(head, by_kind, by_layer, "\n".join(notes))


def _grouped(
    sites: list[Site], of_module: Mapping[str, Energy], group_of: Callable[[Site], str]
) -> dict[str, Energy]:
    """Add the energies of modules by their groups, in the order of the modules."""
    from bishare_dsl.updates import NO_ENERGY

    groups: dict[str, Energy] = {}
    for site in sites:
        group = group_of(site)
        groups[group] = groups.get(group, NO_ENERGY) + of_module[site.path]
    return groups


def _share_table(head: str, groups: Mapping[str, Energy], whole: Energy) -> Table:
    """Make a table of each group's and each share's part of the whole energy."""
    from bishare_dsl.show.table import Table

    rows: list[list[object]] = []
    for name, energy in [*groups.items(), ("all", whole)]:
        parts = [energy.shares.get(share) for share in whole.shares]
        cells = ["" if part is None else f"{part / whole.together:.1%}" for part in parts]
        rows.append([name, *cells, f"{energy.together / whole.together:.1%}"])
    return Table([head, *whole.shares, "together"], rows)


def _energy_data(energy: Energy) -> dict[str, Any]:
    return {"shares": dict(energy.shares), "together": energy.together}


def _show_distances(before: str, after: str, model: str | None, report: Report) -> None:
    """Show how large the updates of two adapters are, and how far apart, by kind."""
    from bishare_dsl.cli.adapters import read_named
    from bishare_dsl.updates import Distance

    one, _, base = read_named(Path(before), model, report)
    other, *_ = read_named(Path(after), model, report)
    difference = _compare(one, other, base)
    kinds: dict[str, Distance] = {}
    whole = Distance()
    for site in one.plan.sites:
        distance = difference.modules.get(site.path)
        if distance is not None:
            kinds[site.kind] = kinds.get(site.kind, Distance()) + distance
            whole += distance
    specs = [one.plan.spec, other.plan.spec]
    same_spec = one.plan.digest == other.plan.digest
    report.data(
        before=before,
        after=after,
        same_spec=same_spec,
        specs=specs,
        modules_in_one_only=difference.alone,
        kinds={kind: _data(of_kind) for kind, of_kind in kinds.items()},
        all=_data(whole),
        modules={path: _data(of_module) for path, of_module in difference.modules.items()},
    )
    what = f"the same spec, {specs[0]}" if same_spec else f"different specs, {' and '.join(specs)}"
    head = escaped(f"{before} -> {after}: {what}")
    if not difference.modules:
        report.tables(f"{head}\nno module is adapted by both")
        return
    _show(report, head, kinds, whole, difference.alone)


@dataclass(frozen=True)
class _Difference:
    """How far two adapters are apart.

    Attributes:
        modules: the distance of each module that both adapt, by path.
        alone: the number of modules that one of them adapts.
    """

    modules: Mapping[str, Distance]
    alone: int


def _compare(one: StoredAdapter, other: StoredAdapter, base: str) -> _Difference:
    """Compare the updates of two adapters; ``base`` has the weights that a magnitude needs."""
    from bishare_dsl.updates import distance, update_of

    weights: Mapping[str, Weight] = {}
    if one.plan.has_magnitudes or other.plan.has_magnitudes:
        from bishare_dsl.models.inspect import linear_maps
        from bishare_dsl.models.load import load_model

        weights = linear_maps(load_model(base, causal=False)[0])
    sites = _adapted(one.plan)
    others = _adapted(other.plan)
    values = one.tensors()
    other_values = other.tensors()
    distances: dict[str, Distance] = {}
    for path in sites:
        if path in others:
            update = update_of(one.plan, values, sites[path], weights)
            other_update = update_of(other.plan, other_values, others[path], weights)
            distances[path] = distance(update, other_update)
    return _Difference(distances, len(sites) + len(others) - 2 * len(distances))


def _adapted(plan: Plan) -> dict[str, Site]:
    """Return the sites that a plan changes, by path."""
    return {site.path: site for site in plan.sites if plan.terms_of[site.path]}


def _show(
    report: Report, head: str, kinds: Mapping[str, Distance], whole: Distance, alone: int
) -> None:
    """Show the distances of kinds and of the whole as a table."""
    from bishare_dsl.show.table import Table

    rows = [[kind, *_cells(of_kind)] for kind, of_kind in kinds.items()]
    rows.append(["all", *_cells(whole)])
    notes: list[str] = []
    if alone:
        notes.append(f"{alone:,} modules are adapted by one of the two only, and not compared")
    if whole.relative == 0:
        notes.append("the updates are equal")
    report.tables(head, Table(["kind", *_FORMS], rows), "\n".join(notes))


def _data(of_kind: Distance) -> dict[str, Any]:
    return {
        "modules": of_kind.modules,
        "norm_before": of_kind.first**0.5,
        "norm_after": of_kind.second**0.5,
        "relative_difference": of_kind.relative,
        "cosine": of_kind.cosine,
    }


def _cells(of_kind: Distance) -> list[object]:
    values = zip(_FORMS.values(), _data(of_kind).values(), strict=True)
    return [None if value is None else form.format(value) for form, value in values]
