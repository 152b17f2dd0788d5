"""Recompute the counts and measurements in README and docs, and compare; claims.toml lists the claims."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
STORED = HERE / "results"


def claims() -> list[dict[str, Any]]:
    """All of them, in order."""
    return tomllib.loads((HERE / "claims.toml").read_text(encoding="utf-8"))["claim"]


def run(command: str, results: Path) -> str:
    """Run a command and return its output; its results go to a folder apart from the stored results."""
    name, *words = shlex.split(command)
    start = {"bishare": [sys.executable, "-m", "bishare_dsl"], "python": [sys.executable]}[name]
    settings = os.environ | {"BISHARE_RESULTS": str(results), "COLUMNS": "250"}
    done = subprocess.run(
        [*start, *words], capture_output=True, text=True, cwd=ROOT, env=settings, check=False
    )
    if done.returncode:
        raise SystemExit(f"{command}: exit status {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def differences(claim: dict[str, Any], printed: str, results: Path) -> list[str]:
    """In words, what is not as it was said."""
    found = [
        f"{figure} is not printed" for figure in claim.get("figures", ()) if figure not in printed
    ]
    if "result" not in claim:
        return found
    said, now = (rows(claim, folder) for folder in (STORED, results))
    bands = dict.fromkeys(claim.get("exact", ()), 0) | dict.fromkeys(
        claim.get("ratios", ()), claim.get("band")
    )
    found += [f"{key}: no such row" for key in said if key not in now]
    return found + [
        f"{key}, {column}: {said[key][column]} was said, {now[key][column]} found"
        for key in said
        for column, band in bands.items()
        if key in now and abs(now[key][column] / said[key][column] - 1) > band
    ]


def rows(claim: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of a result by what names them."""
    stored = json.loads((folder / f"{claim['result']}.json").read_text())["rows"]
    return {", ".join(str(row[name]) for name in claim["by"]): row for row in stored}


def main() -> None:
    failed = 0
    for claim in claims():
        where = f"{claim['command']}  ({claim['date']}, {claim['machine']})"
        if "slow" in claim:
            print(f"not run   {where}: {claim['slow']}", flush=True)
            continue
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            printed = run(claim["command"], Path(scratch))
            wrong = differences(claim, printed, Path(scratch))
        failed += bool(wrong)
        seconds = time.monotonic() - began
        print(f"{'DIFFERS ' if wrong else 'as said '}  {where}, {seconds:.0f} s", flush=True)
        for line in wrong:
            print(f"            {line}", flush=True)
    sys.exit(f"{failed} claims are not as they were said" if failed else 0)


if __name__ == "__main__":
    main()
