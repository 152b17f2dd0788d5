"""``bishare inspect``: what is in an adapter, and whether it is whole."""

from __future__ import annotations

from pathlib import Path

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.report import Report
from bishare_dsl.diagnostics import escaped


@click.command(
    "inspect",
    epilog=options.examples(
        "bishare inspect bishare_ke-llama-7b",
        "bishare inspect bishare_ke-llama-7b --json | jq .config.base_model",
    ),
)
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.pass_obj
def command(report: Report, folder: Path) -> None:
    """Show what is in an adapter: its plan, its base, what wrote it.

    Every file is compared with its digest, and every tensor's name and shape with the plan; what differs
    is an error.
    """
    from bishare_dsl.adapter.files import read_adapter
    from bishare_dsl.cli import summary
    from bishare_dsl.hub import adapter_folder

    stored = read_adapter(adapter_folder(folder))
    config = stored.config
    if report.as_json:
        report.data(
            **summary.as_data(stored.plan), config=config.model_dump(), spec_text=stored.spec_text
        )
        return
    versions = ", ".join(f"{name} {v}" for name, v in config.versions.items() if v)
    base = (config.base_model or "?") + (
        f" at {config.base_revision}" if config.base_revision else ""
    )
    size = sum(len(entry["data"]) for entry in stored.entries.values())
    drawn = sum(stored.plan.tensor[name].size for name in config.drawn)
    notes = [f"{drawn:,} parameters are drawn from the seed, not stored"] if drawn else []
    notes += ["compact: it runs, and cannot train"] if stored.compact else []
    notes += [f"transform {name}: from {package}" for name, package in config.packages.items()]
    report.tables(
        *summary.as_parts(stored.plan),
        f"base: {escaped(base)}\nwritten by: {escaped(versions)}; format {config.format}, "
        f"seed {config.seed}\ntensors: {size:,} bytes, all as they were saved"
        + "".join(f"\n{escaped(note)}" for note in notes),
    )
