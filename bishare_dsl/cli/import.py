"""``bishare import``: plain LoRAs of PEFT as adapters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.report import Report
from bishare_dsl.diagnostics import AdapterError, BishareError
from bishare_dsl.diagnostics.codes import adapter as codes

if TYPE_CHECKING:
    from bishare_dsl.models import Architecture


@click.command(
    "import",
    epilog=options.examples(
        "bishare import peft-lora --out my-adapter",
        "bishare import peft-lora --out my-adapter --model ./my-checkpoint",
        "bishare import customers/* --out adapters    # each into adapters/NAME",
    ),
)
@options.folders()
@options.model(required=False)
@options.out("The folder to write; of several DIRs, the folder of their folders.")
@options.force
@click.pass_obj
def command(
    report: Report, folders: tuple[Path, ...], model: str | None, out: Path, force: bool
) -> None:
    """Make adapters of plain LoRAs that PEFT has saved.

    An adapter adds to every module exactly what its LoRA adds. By default the base is the model that the LoRA
    names. Its shapes are enough.

    Of one DIR the spec is printed. Several DIRs, or a folder of LoRAs, become one folder each in the folder
    of --out; each is read again and compared with its LoRA. A LoRA that cannot be imported is reported, and
    the others are imported.
    """
    from bishare_dsl.adapter.files import is_peft
    from bishare_dsl.adapter.inventory import find_adapters
    from bishare_dsl.export.layouts import layout_of

    single = is_peft(folders[0]) or layout_of(folders[0]) in ("mlx", "gguf")
    if len(folders) == 1 and (single or not find_adapters(folders[0])):
        _import_one(folders[0], model, out, force, report)
        return
    adapters = [adapter for folder in folders for adapter in find_adapters(folder) or [folder]]
    _import_all(adapters, model, out, force, report)


def _import_one(folder: Path, model: str | None, out: Path, force: bool, report: Report) -> None:
    from bishare_dsl.adapter.files import CONFIG
    from bishare_dsl.cli.files import check_out
    from bishare_dsl.cli.fit import base_name
    from bishare_dsl.compiler import import_peft

    check_out(out, CONFIG, force=force)
    base = base_name(folder, model)
    report.note(f"importing for {base} ...")
    text = import_peft(folder, base, out, tell=report.problem)
    report.data(out=str(out), spec=text)
    report.result(text.rstrip())
    report.note(f"saved in {out}")


def _import_all(
    folders: Sequence[Path], model: str | None, out: Path, force: bool, report: Report
) -> None:
    """Import LoRAs one after the other, and say what became of each."""
    from bishare_dsl.cli.fit import named_folders
    from bishare_dsl.show.rows import mib
    from bishare_dsl.show.table import Table

    bases: dict[str, Architecture] = {}
    rows: list[dict[str, Any]] = []
    for name, folder in report.bar(named_folders(folders).items(), "importing"):
        row: dict[str, Any] = {"name": name, "from": str(folder), "out": None}
        try:
            row |= _converted(folder, model, out / name, force, bases, report)
        except BishareError as error:
            row["error"] = error.problems[0].code
            report.error(error)
        rows.append(row)
    done = [row for row in rows if row["out"]]
    before, after = (sum(row[key] for row in done) for key in ("bytes_before", "bytes_after"))
    report.data(adapters=rows, imported=len(done), bytes_before=before, bytes_after=after)
    columns = ("modules", "checked", "bytes_before", "bytes_after")
    table = Table(
        ["name", "modules", "equal to the LoRA", "bytes before", "after"],
        [
            [row["name"], *(row[key] for key in columns)]
            if row["out"]
            else [row["name"], row["error"], "", "", ""]
            for row in rows
        ],
    )
    report.tables(
        table,
        f"{len(done):,} of {len(rows):,} imported into {out}: {mib(before)} MiB before, {mib(after)} after",
    )


def _converted(
    folder: Path,
    model: str | None,
    out: Path,
    force: bool,
    bases: dict[str, Architecture],
    report: Report,
) -> dict[str, Any]:
    """Import a LoRA, read the result, and return what a row of the report needs.

    Raises:
        BishareError: it cannot be imported, or what was written adds something else (BS607).
    """
    from bishare_dsl.adapter.files import CONFIG, TENSORS, read_adapter
    from bishare_dsl.analyse.updates import factors_of
    from bishare_dsl.cli.files import check_out
    from bishare_dsl.cli.fit import base_name
    from bishare_dsl.compiler import import_peft
    from bishare_dsl.export.from_peft import factors_in
    from bishare_dsl.models import architecture_of

    check_out(out, CONFIG, force=force)
    base = base_name(folder, model)
    if base not in bases:
        bases[base] = architecture_of(base)
    import_peft(folder, bases[base], out, named=base, tell=report.problem)
    stored = read_adapter(out)
    written = {p: factors for site, factors in factors_of(stored).items() for p in site.paths}
    checked, worst = 0, 0.0
    for path, given in factors_in(folder).items():
        if path in written and [f.shape for f in given] == [f.shape for f in written[path]]:
            pairs = zip(given, written[path], strict=True)
            worst = max(worst, *(float((one - other).abs().max()) for one, other in pairs))
            checked += 1
    if worst:
        reason = f"its factors differ from those of `{folder}` by up to {worst:.2g}"
        raise AdapterError(codes.CHANGED_FILE(path=out, reason=reason))
    sizes = [sum((f / name).stat().st_size for name in (CONFIG, TENSORS)) for f in (folder, out)]
    return {
        "out": str(out),
        "modules": len(stored.plan.sites),
        "checked": checked,
        "bytes_before": sizes[0],
        "bytes_after": sizes[1],
    }
