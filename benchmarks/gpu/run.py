"""The table of speed on a GPU, in ten minutes of one H100; each part runs in a process of its own.

    python benchmarks/gpu/run.py                          # Llama 3.1 8B's shapes, random weights
    python benchmarks/gpu/run.py --only step decode       # some parts
    python benchmarks/gpu/run.py --minutes 28 --compile inductor --specs lora bishare_ke
    python benchmarks/gpu/run.py --dry-run                # what would be run
    python benchmarks/gpu/run.py --size tiny --device cpu # to see that it runs, in three minutes

Results are written beside the others, and at the end the rows of the table are printed. A part that fails, or
that takes longer than it has, is told, and the next one is run. Other flags are handed on to all parts.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[1]
RESULTS = Path(os.environ.get("BISHARE_RESULTS") or BENCHMARKS / "results")

PARTS: tuple[tuple[str, tuple[str, ...], int], ...] = (
    ("step", (), 180),
    ("decode", (), 150),
    ("many", (), 150),
    ("mixed_batch", (), 120),
    ("step", ("--precision", "4bit"), 240),
    ("decode", ("--precision", "4bit"), 180),
)
"""Of each part its module, its flags, and the seconds that it may take, if `--minutes` leaves them."""

TABLE = (
    ("step", "step", "x PEFT", "training step / PEFT's LoRA", 0.92),
    ("step", "step", "peak, x PEFT", "peak memory of a step / PEFT", 0.78),
    ("decode", "decoding", "x base", "one decoded token / base", 1.04),
    ("mixed_batch", "decoding", "x base", "a token of each row, an adapter each / base", 1.2),
)
"""Of each row its part, the column of subjects, the column of ratios, what it is, and the goal."""


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=sorted({part for part, _, _ in PARTS}))
    parser.add_argument("--minutes", type=float, default=10, help="of all parts together")
    parser.add_argument("--dry-run", action="store_true")
    options, handed_on = parser.parse_known_args(given)
    paths = [str(BENCHMARKS), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # Which ends the part that runs.
    started, began, failed = time.monotonic(), time.time(), 0
    for part, flags, seconds in PARTS:
        if options.only and part not in options.only:
            continue
        command = [sys.executable, "-m", f"gpu.{part}", *flags, *handed_on]
        print("==", *command[1:], flush=True)
        if options.dry_run:
            continue
        left = 60 * options.minutes - (time.monotonic() - started)
        if left <= 0:
            print("   not begun: no time is left")
            failed += 1
            continue
        try:
            limit = min(seconds, left)
            failed += subprocess.run(command, env=environment, timeout=limit).returncode != 0
        except subprocess.TimeoutExpired:
            print(f"   stopped after {limit:.0f} s")
            failed += 1
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return 130
    for path in sorted(RESULTS.glob("gpu-*.json")):
        if path.stat().st_mtime >= began:  # Of this run.
            print(f"\n{path.stem}", *table(path.stem.split("-")[1], path), sep="\n  ", flush=True)
    return min(failed, 1)


def table(part: str, path: Path) -> Iterator[str]:
    """Yield the rows of a part's result, in the table's words."""
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    if part == "many":
        for row in rows:
            yield f"{row['what']}: {row['ratio']:.2f} ({row['quartiles']}), goal {row['goal'] or '-'}"
    for of, subjects, column, what, goal in TABLE:
        if of == part:
            ratios = ", ".join(f"{row[subjects]} {row[column]:.2f}" for row in rows)
            yield f"{what}, goal {goal}: {ratios}"


if __name__ == "__main__":
    sys.exit(main())
