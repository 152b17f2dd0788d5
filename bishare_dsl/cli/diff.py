"""``bishare diff``: compare two specs or two adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.diff_adapters import compare_adapters, is_adapter, one_of_each
from bishare_dsl.cli.report import CommandError, Report
from bishare_dsl.diagnostics import escaped

if TYPE_CHECKING:
    from bishare_dsl.models.site import Site
    from bishare_dsl.plan import Plan
    from bishare_dsl.show.diff import Change, Difference
    from bishare_dsl.show.table import Table


@click.command(
    "diff",
    epilog=options.examples(
        "bishare diff lora bishare_ke --model llama-7b",
        "bishare diff bishare_ss my.share --model ./my-checkpoint --set r_inter=32",
        "bishare diff old.share new.share --model llama-7b --json | jq '.changes[].sites[]'",
        "bishare diff lib#acme lib#globex    # two adapters",
    ),
)
@options.spec("before", "BEFORE")
@options.spec("after", "AFTER")
@options.model(required=False)
@options.values
@click.pass_obj
def command(
    report: Report, before: str, after: str, model: str | None, params: dict[str, options.Value]
) -> None:
    """Show which modules two specs share differently on a model, or how far apart the updates of two adapters
    are.

    BEFORE and AFTER are two specs, which need --model, or two adapters: folders, adapters of a library
    (FOLDER#NAME), or plain LoRAs of PEFT.

    Shares are matched by name. If then one is left in each spec, these two are matched. A param is set in the
    specs that have it. Updates are compared by kind of module, with their relative difference
    |dW_1 - dW_2| / |dW_1| and their cosine.
    """
    adapters = [is_adapter(name) for name in (before, after)]
    if all(adapters):
        if params:
            raise click.UsageError("--set is for specs, and these are adapters")
        compare_adapters(before, after, model, report)
        return
    if any(adapters):
        raise CommandError(one_of_each(*sorted((before, after), key=is_adapter, reverse=True)))
    if model is None:
        raise click.UsageError("two specs are compared on a model: give --model, such as llama-7b")
    from bishare_dsl.cli.reading import read_specs
    from bishare_dsl.compiler import make_plan
    from bishare_dsl.models import architecture_of
    from bishare_dsl.show.diff import difference

    specs, architecture = read_specs((before, after), params), architecture_of(model)
    plans = {}
    for file, (spec, where, params_of_spec) in specs.items():
        resolved = make_plan(spec, architecture, params_of_spec, where)
        report.all(resolved.problems, where)
        plans[file] = resolved.plan
    plan_before, plan_after = plans[before], plans[after]
    compared = difference(plan_before, plan_after)
    report.data(
        before=_head(before, plan_before), after=_head(after, plan_after), **asdict(compared)
    )
    report.tables(*_parts(before, plan_before, after, plan_after, compared))


def _head(file: str, plan: Plan) -> dict[str, Any]:
    from bishare_dsl.show.compare import figures

    return {"file": file, "spec": plan.spec, "params": plan.params, **asdict(figures(plan))}


def _parts(
    before: str, plan_before: Plan, after: str, plan_after: Plan, compared: Difference
) -> list[str | Table]:
    from bishare_dsl.show.table import Table

    sites = {site.path: site for plan in (plan_before, plan_after) for site in plan.sites}
    change = plan_after.trainable / plan_before.trainable - 1
    differ = f"{compared.modules:,} of {len(sites):,} modules differ"
    trainable = f"{plan_before.trainable:,} -> {plan_after.trainable:,} ({change:+.1%})"
    names = escaped(f"{before} -> {after} on {plan_before.base.name}")
    head = f"{names}: {differ}\ntrainable params: {trainable}"
    shares = Table(
        ["share", "modules before", "after", "trainable before", "after"],
        [
            [
                pair.name,
                *(getattr(row, what, None) for what in ("modules", "trainable") for row in rows),
            ]
            for pair in compared.shares
            for rows in [(pair.before, pair.after)]
        ],
    )
    changes = Table(
        ["share", "what differs", "modules", "before", "after", "where"],
        [
            [
                change.share,
                change.what,
                len(change.sites) or "",
                change.before,
                change.after,
                "everywhere" if 0 < len(change.sites) == len(sites) else _where(change, sites),
            ]
            for change in compared.changes
        ],
        left={0, 1, 3, 4, 5},
    )
    if not changes.rows and not compared.modules:
        return [head, shares, "the same modules share, at the same settings"]
    return [head, *(table for table in (shares, changes) if table.rows)]


def _where(change: Change, sites: Mapping[str, Site]) -> str:
    """Name the kinds and the runs of layers of the sites that differ."""
    from bishare_dsl.show.rows import spans

    differing = [sites[path] for path in change.sites]
    kinds = ", ".join(dict.fromkeys(site.kind for site in differing))
    layers = {site.layer for site in differing if site.layer is not None}
    return f"{kinds}; layer{'s' * (len(layers) > 1)} {spans(layers)}" if layers else kinds
