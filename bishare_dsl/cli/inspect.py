"""``bishare inspect``: what is in an adapter, and whether it is whole; or a list of many adapters."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.report import FINDINGS, Report
from bishare_dsl.diagnostics import BishareError, escaped

if TYPE_CHECKING:
    from bishare_dsl.folder.contents import StoredAdapter
    from bishare_dsl.folder.groups import Groups
    from bishare_dsl.folder.inventory import Listed, Shared
    from bishare_dsl.show.table import Table


@click.command(
    "inspect",
    epilog=options.examples(
        "bishare inspect bishare_ke-llama-7b",
        "bishare inspect adapters/    # a table of all in it",
        "bishare inspect out/library lora-a lora-b",
        "bishare inspect runs/ --baseline 'lora r=2' --out table.tex --out plot.pdf",
        "bishare inspect bishare_ke-llama-7b --json | jq .config.base_model",
    ),
)
@options.folders()
@click.option(
    "-o",
    "--out",
    "files",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the comparison of runs: .csv, .md, .tex, or a plot as .svg, .pdf, .png. May be repeated.",
)
@click.option(
    "--baseline",
    metavar="SPEC",
    help="The spec of the first row, such as 'lora r=2'; by default the best on the choosing rows.",
)
@click.pass_obj
def command(
    report: Report, folders: tuple[Path, ...], files: tuple[Path, ...], baseline: str | None
) -> None:
    """Show what is in an adapter: its plan, its base, its files. Or list many adapters, or compare runs.

    For one adapter, every file is compared with its digest, and every tensor's name and shape with the
    plan. A difference is an error.

    A folder of adapters, a library, or several adapters become a table. Plain LoRAs of PEFT are listed
    too, and the tasks of a library's groups. A list reads sizes and configs alone, and verifies nothing.

    Two or more runs of `bishare train` with held-out rows become a comparison: for each spec a learning
    rate chosen on one half of the rows, the score on the other half with a 95% interval over seeds, and the
    paired difference to the first spec. Runs of other data, base, batch or steps are named and left out.
    """
    from bishare_dsl.cli.files import find_adapters
    from bishare_dsl.cli.runs import check_files, show_runs
    from bishare_dsl.folder.files import is_peft, names_in
    from bishare_dsl.hub import adapter_folder
    from bishare_dsl.train.finished import find_runs

    check_files(files)
    places = [adapter_folder(folder) for folder in folders]
    adapters = [adapter for place in places for adapter in find_adapters(place)]
    runs = find_runs(places)
    scored = [run for run in runs if run.judging is not None]
    if files or baseline or len(scored) > 1:
        show_runs(runs, files, baseline, report)
        _list_others(adapters, {run.folder for run in runs}, report)
        return
    whole = adapters == places[:1] and not names_in(adapters[0]) and not is_peft(adapters[0])
    if len(places) == 1 and (whole or not adapters):
        _show(places[0], report)
    else:
        _list(adapters, places, report)


def _show(folder: Path, report: Report) -> None:
    """Show one adapter."""
    from bishare_dsl.cli import summary
    from bishare_dsl.folder.files import read_adapter

    stored = read_adapter(folder)
    config = stored.config
    where = _whereabouts(stored)
    if report.as_json:
        report.data(**summary.as_data(stored.plan), spec_text=stored.spec_text)
        report.data(config=config.model_dump(), whereabouts=where)
        return
    versions = ", ".join(f"{name} {v}" for name, v in config.versions.items() if v)
    revision = f" at {config.base_revision}" if config.base_revision else ""
    base = (config.base_model or "?") + revision
    size = sum(len(entry["data"]) for entry in stored.entries.values())
    form = f" in {config.rounded}" if config.rounded else ""
    notes = [f"parameters: {', '.join(f'{n:,} {text}' for text, n in where.items() if n)}"]
    if config.adapters and not stored.plan.is_library:
        notes.append(f"each adapter of the library: {stored.plan.owned}")
    notes += [f"transform {name}: from {package}" for name, package in config.packages.items()]
    report.tables(
        *summary.as_parts(stored.plan),
        f"base: {escaped(base)}\nwritten by: {escaped(versions)}; format {config.format}, "
        f"seed {config.seed}\ntensors: {size:,} bytes{form}, all as they were saved"
        + "".join(f"\n{escaped(note)}" for note in notes),
    )


def _whereabouts(stored: StoredAdapter) -> dict[str, int]:
    """Count the parameters that the files hold, that the seed gives, and that the base's weights give."""
    plan = stored.plan
    config = stored.config
    random = sum(plan.tensor[name].size for name in config.ways("seed"))
    of_base = sum(plan.tensor[name].size for name in config.ways("base"))
    whole = sum(tensor.size for tensor in plan.tensors)
    return {
        "stored": whole - random - of_base,
        "random, regenerated from the seed": random,
        "recomputed from the base's weights": of_base,
    }


def _list_others(adapters: Sequence[Path], compared: Collection[Path], report: Report) -> None:
    """List the adapters that are not of the runs that were compared."""
    others = [adapter for adapter in adapters if adapter not in compared]
    if others:
        _list(others, others, report)


def _list(paths: Sequence[Path], places: Sequence[Path], report: Report) -> None:
    """List adapters."""
    from bishare_dsl.folder.inventory import Shared, list_adapters

    _report_places_without_adapter(places, report)
    rows: list[Listed] = []
    shared: list[Shared] = []
    for folder in report.bar(paths, "reading"):
        for entry in list_adapters(folder):
            if isinstance(entry, Shared):
                shared.append(entry)
            else:
                rows.append(entry)
    groups = _groups_of([part.library for part in shared], report)
    if any(row.error for row in rows):
        report.exit_code = max(report.exit_code, FINDINGS)
    if report.as_json:
        report.data(
            groups={library: record.model_dump() for library, record in groups.items()},
            # Not `asdict`, which copies each value: a library may have 100,000 adapters.
            adapters=[{k: v for k, v in vars(row).items() if k != "spec"} for row in rows],
            shared=[vars(part) for part in shared],
            totals=_totals(rows, shared),
        )
        return
    if rows:
        tables = [_groups_table(library, record) for library, record in groups.items()]
        report.tables(_table(rows), _summary(rows, shared), *tables)


def _report_places_without_adapter(places: Iterable[Path], report: Report) -> None:
    """Say what is wrong with a place that has no adapter, in the words of one that is read."""
    from bishare_dsl.cli.files import find_adapters
    from bishare_dsl.folder.files import read_adapter

    for place in places:
        if not find_adapters(place):
            try:
                read_adapter(place)
            except BishareError as error:
                report.error(error)


def _groups_of(libraries: Iterable[str], report: Report) -> dict[str, Groups]:
    """Read the groups of the libraries that have them."""
    from bishare_dsl.folder.groups import read_groups

    groups: dict[str, Groups] = {}
    for library in libraries:
        try:
            record = read_groups(Path(library))
        except BishareError as error:
            report.error(error)
            continue
        if record is not None:
            groups[library] = record
    return groups


def _groups_table(library: str, record: Groups) -> Table:
    """Return who is in which group of a library."""
    from bishare_dsl.show.table import Table

    lines: list[list[object]] = []
    for group in record.tasks:
        members = record.members_of(group)
        lines.append([f"{library}#{group}", len(members), ", ".join(members)])
    return Table(["group", "tasks", "names"], lines, left={0, 2})


def _table(rows: Iterable[Listed]) -> Table:
    from bishare_dsl.show.rows import span
    from bishare_dsl.show.table import Table

    head = ["name", "method", "base", "rank", "parameters", "bytes", "date"]
    lines: list[list[object]] = []
    for row in rows:
        if row.error:
            lines.append([row.name, "cannot be read", *[""] * 5])
            continue
        base = (row.base or "-") + (f"@{row.revision[:7]}" if row.revision else "")
        date = datetime.fromtimestamp(row.date).strftime("%Y-%m-%d %H:%M")
        numbers = [row.parameters, row.bytes, date]
        lines.append([row.name, row.method, base, span(row.rank), *numbers])
    return Table(head, lines, left={0, 1, 2})


def _totals(rows: Sequence[Listed], shared: Sequence[Shared]) -> dict[str, Any]:
    good = [row for row in rows if not row.error]
    return {
        "adapters": len(good),
        "unreadable": len(rows) - len(good),
        "parameters": sum(r.parameters for r in good) + sum(s.parameters for s in shared),
        "bytes": sum(r.bytes for r in good) + sum(s.bytes for s in shared),
        "specs": len({row.spec or row.method for row in good}),
        "bases": sorted({row.base for row in good if row.base}),
    }


def _summary(rows: Sequence[Listed], shared: Sequence[Shared]) -> str:
    from bishare_dsl.show.rows import mib

    total = _totals(rows, shared)
    adapters = "1 adapter" if total["adapters"] == 1 else f"{total['adapters']:,} adapters"
    specs = "1 different spec" if total["specs"] == 1 else f"{total['specs']} different specs"
    bases = total["bases"]
    base = ", ".join(map(escaped, bases[:5])) or "unknown"
    if len(bases) > 5:
        base += f" and {len(bases) - 5} more"
    size = f"{total['parameters']:,} parameters, {mib(total['bytes'])} MiB"
    bad = f"; {total['unreadable']} cannot be read" if total["unreadable"] else ""
    lines = [f"{escaped(row.place)}: {escaped(row.error)}" for row in rows if row.error]
    lines += [f"{adapters}, {size}{bad}", f"{specs}; base: {base}"]
    for part in shared:
        size = f"{part.parameters:,} parameters, {mib(part.bytes)} MiB, once for {part.adapters:,}"
        lines.append(f"shared in {escaped(part.library)}: {size} of these")
    return "\n".join(lines)
