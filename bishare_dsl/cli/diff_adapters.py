"""Compare the updates of two adapters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bishare_dsl.cli.report import Report
from bishare_dsl.diagnostics import Problem, escaped
from bishare_dsl.diagnostics.codes import usage as codes

if TYPE_CHECKING:
    from bishare_dsl.updates import Distance


def no_adapter(before: str, after: str, name: str) -> Problem:
    """Return the problem of comparing what is not an adapter (BS901)."""
    help = f"to compare two specs, use `bishare plan {before} {after} --model MODEL`"
    return codes.WRONG_USAGE(what=f"`{name}` is not the folder of an adapter", help=help)


def compare_adapters(before: str, after: str, model: str | None, report: Report) -> None:
    """Compare two adapters of one base.

    Raises:
        BishareError: an adapter cannot be read, or its updates depend on the input. For a magnitude, the
            base's weights cannot be loaded.
    """
    from bishare_dsl.cli.adapters import base_of
    from bishare_dsl.cli.reading import read_adapter_for
    from bishare_dsl.show.table import Table
    from bishare_dsl.updates import Distance, distance, update_of

    bases, names = zip(*(base_of(Path(name), model) for name in (before, after)), strict=True)
    first_adapter, second_adapter = (
        read_adapter_for(Path(name), base, report, named)
        for name, base, named in zip((before, after), bases, names, strict=True)
    )
    plans, weights = (first_adapter.plan, second_adapter.plan), {}
    if any(plan.has_magnitudes for plan in plans):
        from bishare_dsl.models.inspect import linear_maps
        from bishare_dsl.models.load import load_model

        weights = linear_maps(load_model(names[0], causal=False)[0])
    first, second = ({s.path: s for s in plan.sites if plan.terms_of[s.path]} for plan in plans)
    tensors, whole = (first_adapter.tensors(), second_adapter.tensors()), Distance()
    distances: dict[str, Distance] = {}
    kinds: dict[str, Distance] = {}
    for path, site in first.items():
        if path in second:
            update = update_of(plans[0], tensors[0], site, weights)
            distances[path] = distance(
                update, update_of(plans[1], tensors[1], second[path], weights)
            )
            kinds[site.kind] = kinds.get(site.kind, Distance()) + distances[path]
            whole += distances[path]
    alone = len(first) + len(second) - 2 * len(distances)
    specs = [first_adapter.plan.spec, second_adapter.plan.spec]
    same_spec = first_adapter.plan.digest == second_adapter.plan.digest
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
    sentence = (
        "the same spec, " + specs[0] if same_spec else "different specs, " + " and ".join(specs)
    )
    head = escaped(f"{before} -> {after}: {sentence}")
    if not distances:
        report.tables(f"{head}\nno module is adapted by both")
        return
    columns = ["kind", "modules", "norm before", "norm after", "relative difference", "cosine"]
    table = Table(
        columns, [_line(kind, of_kind) for kind, of_kind in (kinds | {"all": whole}).items()]
    )
    last = [f"{alone:,} modules are adapted by one of the two only, and not compared"] * bool(alone)
    last += ["the updates are equal"] * (whole.relative == 0)
    report.tables(head, table, *["\n".join(last)] * bool(last))


def _data(distance_of_kind: Distance) -> dict[str, Any]:
    return {
        "modules": distance_of_kind.modules,
        "norm_before": distance_of_kind.first**0.5,
        "norm_after": distance_of_kind.second**0.5,
        "relative_difference": distance_of_kind.relative,
        "cosine": distance_of_kind.cosine,
    }


def _line(kind: str, distance_of_kind: Distance) -> list[object]:
    relative, cosine = distance_of_kind.relative, distance_of_kind.cosine
    return [
        kind,
        distance_of_kind.modules,
        f"{distance_of_kind.first**0.5:.4g}",
        f"{distance_of_kind.second**0.5:.4g}",
        relative if relative is None else f"{relative:.2%}",
        cosine if cosine is None else f"{cosine:+.4f}",
    ]
