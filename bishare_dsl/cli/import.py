"""``bishare import``: plain LoRAs of PEFT as adapters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.report import Report
from bishare_dsl.diagnostics import BishareError

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
@options.out("The folder to write; with several DIRs, the parent of their folders.")
@options.force
@click.pass_obj
def command(
    report: Report, folders: tuple[Path, ...], model: str | None, out: Path, force: bool
) -> None:
    """Convert plain LoRAs that PEFT has saved into adapters of bishare, exactly.

    Each result is read again and compared with its LoRA at every module. By default the base is the model
    that the LoRA names. Its shapes are enough.

    With one DIR the spec is printed. With several, or a folder of LoRAs, each becomes a folder in --out. A
    LoRA that cannot be imported is reported, and the others are imported.
    """
    from bishare_dsl.adapter.files import is_peft
    from bishare_dsl.adapter.inventory import find_adapters
    from bishare_dsl.cli.adapters import base_name, named_folders
    from bishare_dsl.export.layouts import layout_of

    bases: dict[str, Architecture] = {}
    single = is_peft(folders[0]) or layout_of(folders[0]) in ("mlx", "gguf")
    if len(folders) == 1 and (single or not find_adapters(folders[0])):
        report.note(f"importing for {base_name(folders[0], model)} ...")
        _, text = _imported(folders[0], model, out, force, bases, report)
        report.data(out=str(out), spec=text)
        report.result(text.rstrip())
        report.note(f"saved in {out}")
        return
    loras = [adapter for folder in folders for adapter in find_adapters(folder) or [folder]]
    rows: list[dict[str, Any]] = []
    for name, folder in report.bar(named_folders(loras).items(), "importing"):
        row: dict[str, Any] = {"name": name, "from": str(folder), "out": None}
        try:
            row |= _imported(folder, model, out / name, force, bases, report)[0]
        except BishareError as error:
            row["error"] = error.problems[0].code
            report.error(error)
        rows.append(row)
    _tell(rows, out, report)


def _tell(rows: Sequence[dict[str, Any]], out: Path, report: Report) -> None:
    """Report what became of each LoRA."""
    from bishare_dsl.show.rows import mib
    from bishare_dsl.show.table import Table

    done = [row for row in rows if row["out"]]
    before, after = (sum(row[key] for row in done) for key in ("bytes_before", "bytes_after"))
    report.data(adapters=rows, imported=len(done), bytes_before=before, bytes_after=after)
    columns = ("modules", "checked", "bytes_before", "bytes_after")
    table = Table(
        ["name", "modules", "equal in dW", "bytes before", "after"],
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


def _imported(
    folder: Path,
    model: str | None,
    out: Path,
    force: bool,
    bases: dict[str, Architecture],
    report: Report,
) -> tuple[dict[str, Any], str]:
    """Import a LoRA, compare the result, and return what a row of the report needs, and its spec.

    Raises:
        BishareError: it cannot be imported, or what was written adds something else (BS607).
    """
    from bishare_dsl.adapter.files import CONFIG, TENSORS
    from bishare_dsl.cli.adapters import base_name
    from bishare_dsl.cli.files import check_out
    from bishare_dsl.compiler import import_peft
    from bishare_dsl.models import architecture_of

    check_out(out, CONFIG, force=force)
    base = base_name(folder, model)
    if base not in bases:
        bases[base] = architecture_of(base)
    lora, compared = import_peft(folder, bases[base], out, named=base)
    files = [[f] if f.is_file() else [f / CONFIG, f / TENSORS] for f in (folder, out)]
    before, after = (
        sum(path.stat().st_size for path in paths if path.is_file()) for paths in files
    )
    row = {"out": str(out), "modules": len(lora.plan.sites), "checked": compared.sites}
    return row | {"bytes_before": before, "bytes_after": after}, lora.spec_text
