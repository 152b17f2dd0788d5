"""Compare the specs and the updates of two adapters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bishare_dsl.cli.report import Report
from bishare_dsl.diagnostics import Problem, escaped
from bishare_dsl.diagnostics.codes import usage as codes

if TYPE_CHECKING:
    from bishare_dsl.analyse.updates import Distance, Factors
    from bishare_dsl.models.site import Site


def is_adapter(name: str) -> bool:
    """Return whether a name is the folder of an adapter or library, or an adapter in a library."""
    try:
        path = Path(name.rpartition("#")[0] if "#" in name and not Path(name).exists() else name)
        return path.is_dir()
    except (OSError, ValueError):  # For example, a name that is too long.
        return False


def one_of_each(adapter: str, spec: str) -> Problem:
    """Return the problem of comparing an adapter with a spec (BS901)."""
    what = f"`{adapter}` is an adapter and `{spec}` is not: two adapters are compared, or two specs"
    help = f"give a second adapter, or the spec of the first: it is in `bishare inspect {adapter}`"
    return codes.WRONG_USAGE(what=what, help=help)


def compare_adapters(before: str, after: str, model: str | None, report: Report) -> None:
    """Compare two adapters of one base.

    Raises:
        BishareError: an adapter cannot be read, or its updates have no factors.
    """
    from bishare_dsl.analyse.updates import distance, factors_of
    from bishare_dsl.cli.fit import base_of
    from bishare_dsl.cli.reading import read_adapter_for

    one, two = (
        read_adapter_for(Path(name), *_last(base_of(Path(name), model), report))
        for name in (before, after)
    )
    first, second = factors_of(one), factors_of(two)
    same_spec = one.plan.digest == two.plan.digest
    others = {site.path: site for site in second}
    both = {site: others[site.path] for site in first if site.path in others}
    pairs = {site: (first[site], second[other]) for site, other in both.items()}
    kinds: dict[str, list[Site]] = {}
    for site in pairs:
        kinds.setdefault(site.kind, []).append(site)
    by_kind = {kind: distance(*_sides(pairs, sites)) for kind, sites in kinds.items()}
    whole = distance(*_sides(pairs, [*pairs]))
    alone = len(first) + len(second) - 2 * len(pairs)
    report.data(
        before=before,
        after=after,
        same_spec=same_spec,
        specs=[one.plan.spec, two.plan.spec],
        modules_in_one_only=alone,
        kinds={kind: _data(kind_distance) for kind, kind_distance in by_kind.items()},
        all=_data(whole),
        modules={site.path: _data(distance([a], [b])) for site, (a, b) in pairs.items()},
    )
    report.tables(
        *_parts(before, after, (one.plan.spec, two.plan.spec), same_spec, alone, by_kind, whole)
    )


def _last(base: tuple[Any, str], report: Report) -> tuple[Any, Report, str]:
    return base[0], report, base[1]


def _sides(
    pairs: dict[Site, tuple[Factors, Factors]], sites: list[Site]
) -> tuple[list[Factors], list[Factors]]:
    return [pairs[site][0] for site in sites], [pairs[site][1] for site in sites]


def _data(distance_of_kind: Distance) -> dict[str, Any]:
    return {
        "modules": distance_of_kind.modules,
        "norm_before": distance_of_kind.first**0.5,
        "norm_after": distance_of_kind.second**0.5,
        "relative_difference": distance_of_kind.relative,
        "cosine": distance_of_kind.cosine,
    }


def _parts(
    before: str,
    after: str,
    specs: tuple[str, str],
    same_spec: bool,
    alone: int,
    kinds: dict[str, Distance],
    whole: Distance,
) -> list[Any]:
    from bishare_dsl.show.table import Table

    sentence = (
        f"the same spec, {specs[0]}" if same_spec else f"different specs, {specs[0]} and {specs[1]}"
    )
    head = escaped(f"{before} -> {after}: {sentence}")
    if not whole.modules:
        return [f"{head}\nno module is adapted by both"]
    lines = [_line(kind, kind_distance) for kind, kind_distance in (*kinds.items(), ("all", whole))]
    columns = ["kind", "modules", "norm before", "norm after", "relative difference", "cosine"]
    last = []
    if alone:
        last.append(f"{alone:,} modules are adapted by one of the two only, and not compared")
    if whole.relative == 0:
        last.append("the updates are equal")
    return [head, Table(columns, lines), *(["\n".join(last)] if last else [])]


def _line(kind: str, distance_of_kind: Distance) -> list[str]:
    relative, cosine = distance_of_kind.relative, distance_of_kind.cosine
    return [
        kind,
        f"{distance_of_kind.modules:,}",
        f"{distance_of_kind.first**0.5:.4g}",
        f"{distance_of_kind.second**0.5:.4g}",
        "-" if relative is None else f"{relative:.2%}",
        "-" if cosine is None else f"{cosine:+.4f}",
    ]
