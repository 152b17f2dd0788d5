"""``bishare diff``: compare the updates of two adapters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.reading import is_adapter
from bishare_dsl.cli.report import CommandError, Report
from bishare_dsl.diagnostics import escaped
from bishare_dsl.diagnostics.codes import usage as codes

if TYPE_CHECKING:
    from bishare_dsl.updates import Distance

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
    ),
)
@click.argument("before", metavar="BEFORE")
@click.argument("after", metavar="AFTER")
@options.model(required=False)
@click.pass_obj
def command(report: Report, before: str, after: str, model: str | None) -> None:
    """Show how large the updates of two adapters are, and how far apart.

    BEFORE and AFTER are folders, adapters of a library (FOLDER#NAME), or plain LoRAs of PEFT. Updates are
    compared by kind of module, with their relative difference |dW_1 - dW_2| / |dW_1| and their cosine.
    """
    if others := [name for name in (before, after) if not is_adapter(name)]:
        help = "`bishare inspect .` lists adapters and libraries"
        if len(others) > 1:
            help = f"to compare two specs, use `bishare plan {before} {after} --model MODEL`"
        what = f"`{others[0]}` is not the folder of an adapter"
        raise CommandError(codes.WRONG_USAGE(what=what, help=help))
    from bishare_dsl.cli.adapters import read_named
    from bishare_dsl.show.table import Table
    from bishare_dsl.updates import Distance, distance, update_of

    pairs = [read_named(Path(name), model, report) for name in (before, after)]
    plans = [adapter.plan for adapter, *_ in pairs]
    weights = {}
    if any(plan.has_magnitudes for plan in plans):
        from bishare_dsl.models.inspect import linear_maps
        from bishare_dsl.models.load import load_model

        weights = linear_maps(load_model(pairs[0][2], causal=False)[0])
    tensors = [adapter.tensors() for adapter, *_ in pairs]
    first, second = ({s.path: s for s in plan.sites if plan.terms_of[s.path]} for plan in plans)
    distances: dict[str, Distance] = {}
    kinds: dict[str, Distance] = {}
    for path in (path for path in first if path in second):
        both = zip(plans, tensors, (first, second), strict=True)
        one, other = (update_of(p, values, sites[path], weights) for p, values, sites in both)
        distances[path] = distance(one, other)
        for kind in (first[path].kind, "all"):
            kinds[kind] = kinds.get(kind, Distance()) + distances[path]
    whole = kinds.pop("all", Distance())
    alone = len(first) + len(second) - 2 * len(distances)
    specs = [plan.spec for plan in plans]
    same_spec = plans[0].digest == plans[1].digest
    report.data(
        before=before,
        after=after,
        same_spec=same_spec,
        specs=specs,
        modules_in_one_only=alone,
        kinds={kind: _data(of_kind) for kind, of_kind in kinds.items()},
        all=_data(whole),
        modules={path: _data(of_module) for path, of_module in distances.items()},
    )
    what, shown = ("the same spec", specs[:1]) if same_spec else ("different specs", specs)
    head = escaped(f"{before} -> {after}: {what}, {' and '.join(shown)}")
    if not distances:
        report.tables(f"{head}\nno module is adapted by both")
        return
    lines = [[kind, *_cells(of_kind)] for kind, of_kind in (kinds | {"all": whole}).items()]
    last = [f"{alone:,} modules are adapted by one of the two only, and not compared"] * bool(alone)
    last += ["the updates are equal"] * (whole.relative == 0)
    report.tables(head, Table(["kind", *_FORMS], lines), "\n".join(last))


def _data(of_kind: Distance) -> dict[str, Any]:
    norms = of_kind.first**0.5, of_kind.second**0.5
    values = of_kind.modules, *norms, of_kind.relative, of_kind.cosine
    names = (column.replace(" ", "_") for column in _FORMS)
    return dict(zip(names, values, strict=True))


def _cells(of_kind: Distance) -> list[object]:
    values = zip(_FORMS.values(), _data(of_kind).values(), strict=True)
    return [None if value is None else form.format(value) for form, value in values]
